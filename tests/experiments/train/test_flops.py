"""A count of FLOPs that would be wrong is none."""

import types

import jax
import jax.numpy as jnp
import pytest

from experiments.train.compiled import MethodPrograms

CALL = 'ENTRY main { ROOT c = f32[2,2] custom-call(), custom_call_target="__cublas$gemm" }'


def as_often_as_the_data_say(times):
    more, square = (lambda carry: carry[0] < times), (lambda carry: (carry[0] + 1, carry[1] @ carry[1]))
    return jax.lax.while_loop(more, square, (0, jnp.eye(3)))[1]


@pytest.mark.parametrize(
    "text", [CALL, jax.jit(as_often_as_the_data_say).lower(3).compile().as_text()], ids=["call", "loop"]
)
def test_what_cannot_be_told(text):
    """Products inside a library's call, and a loop of unknown length."""
    method = object.__new__(MethodPrograms)
    method._compiled = {True: types.SimpleNamespace(as_text=lambda: text)}
    assert method.flops() is None

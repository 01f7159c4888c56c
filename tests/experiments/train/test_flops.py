"""A count of FLOPs that would be wrong is none."""

import types

import jax
import jax.numpy as jnp

from experiments.train.compiled import MethodPrograms


def flops(text):
    method = object.__new__(MethodPrograms)
    method._compiled = {True: types.SimpleNamespace(as_text=lambda: text)}
    return method.flops()


def test_products_inside_the_call_of_a_library():
    assert flops('ENTRY main { ROOT c = f32[2,2] custom-call(), custom_call_target="__cublas$gemm" }') is None


def test_a_loop_that_runs_as_often_as_the_data_say():
    def program(times):
        more, square = (lambda carry: carry[0] < times), (lambda carry: (carry[0] + 1, carry[1] @ carry[1]))
        return jax.lax.while_loop(more, square, (0, jnp.eye(3)))[1]

    assert flops(jax.jit(program).lower(3).compile().as_text()) is None

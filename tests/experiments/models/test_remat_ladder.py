"""The ladder of remat: what "auto" stands for, what older records say, and less memory with every step down."""

import functools
from pathlib import Path

import jax
import pytest

import gam_jax
from experiments.common.hlo import parse
from experiments.common.hlo_cost import matmul_flops
from experiments.common.identity import from_json
from experiments.measure.cost.cases import train_config
from experiments.measure.cost.config import BenchmarkConfig
from experiments.measure.cost.stand_in import set_up_without_data
from experiments.models.config import ModelConfig
from experiments.models.remat import resolve
from tests.experiments.models.test_remat import problem


@pytest.mark.parametrize(("said", "now"), [(False, "auto"), (True, "all"), ("dots", "dots")])
def test_older_records_are_understood(said, now):
    assert from_json(ModelConfig, {"name": "vit", "remat": said}) == ModelConfig(name="vit", remat=now)


@pytest.mark.parametrize("scanned", [True, False])
@pytest.mark.parametrize("second_order", [True, False])
@pytest.mark.parametrize("divided", [True, False])
def test_what_auto_stands_for(scanned, second_order, divided):
    kinds = {"scanned": scanned, "second_order": second_order, "divided": divided}
    pays = scanned and (second_order or divided)
    assert resolve("auto", **kinds) == ("dots_no_batch" if pays else "auto")
    assert resolve("dots", **kinds) == "dots"


@pytest.mark.parametrize(
    ("network", "method", "remat"),
    [("vit", "gam", True), ("vit", "gradient_norm_penalty", True), ("vit", "sam", False), ("resnet", "gam", False)],
)
def test_the_trainer_has_it_by_default_where_it_pays(network, method, remat):
    setup = set_up_without_data(train_config(BenchmarkConfig(workdir=Path()), network, method))
    state = jax.eval_shape(setup.init)
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), "float32")
    apply = functools.partial(setup.model.apply, train=False)
    assert ("remat" in str(jax.make_jaxpr(apply)(state.params, state.model_state, images))) == remat


def needs(remat):
    """FLOPs and memory of exact GAM."""
    loss_fn, params, arguments = problem("vit", remat=remat)
    step = gam_jax.gam_value_and_grad(loss_fn, has_aux=True)
    compiled = jax.jit(lambda params: step(params, **arguments)[1]).lower(params).compile()
    return parse(compiled.as_text()).total(matmul_flops), compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.slow
def test_each_step_of_the_ladder_takes_less_memory():
    ladder = [needs(remat) for remat in ("none", "dots", "dots_no_batch", "all")]
    flops, memory = zip(*ladder, strict=True)
    assert flops[1] < 1.01 * flops[0] and list(flops) == sorted(flops)
    assert list(memory) == sorted(memory, reverse=True) and memory[2] < 0.5 * memory[0]

"""What the report on a TPU slice rests on, with the CPU's compiler in the place of the TPU's."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from experiments.common.errors import UserError
from experiments.common.hlo import parse
from experiments.common.hlo_cost import Collective, collectives, group_size
from experiments.configs import load_train
from experiments.main import main
from experiments.measure.cost import aot, aot_report, chips
from experiments.measure.cost.config import AotConfig
from experiments.measure.cost.stand_in import random_batch, set_up_without_data
from experiments.models.config import ModelConfig
from experiments.train.config import DevicesConfig
from experiments.train.mesh import make_mesh
from experiments.train.programs import Programs

CHIP = chips.Chip(flops=1e12, memory_bytes=1e9, memory_bandwidth=1e11, network_bandwidth=1e10)


def config(hidden=(64, 64), **changes):
    return AotConfig(config="digits", model=ModelConfig(name="mlp", hidden=hidden), batch_size=16, **changes)


def of_program(fn, *args):
    return collectives(parse(jax.jit(fn).lower(*args).compile().as_text()), len(jax.devices()))


def on(mesh, shape, *spec):
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(*spec)))


def test_collectives_of_a_compiled_program():
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto, AxisType.Auto))

    def fn(x):
        inside = lambda x: jax.lax.all_gather(jax.lax.psum(x, "a"), "b", tiled=True)  # noqa: E731
        return jax.shard_map(
            inside, mesh=mesh, in_specs=PartitionSpec("b"), out_specs=PartitionSpec(), check_vma=False
        )(x)

    found = of_program(fn, on(mesh, (10, 3), "b"))
    assert found["all-reduce"] == Collective(1, 60, 60 * 2 * 3 / 4)
    assert found["all-gather"] == Collective(1, 120, 60)


def test_collectives_in_a_loop_count_as_often_as_it_runs():
    mesh = jax.make_mesh((8,), ("a",), axis_types=(AxisType.Auto,))
    fn = lambda x, w: jax.lax.scan(lambda x, w: (jnp.sin(x @ w), None), x, w)[0]  # noqa: E731
    found = of_program(fn, on(mesh, (2, 16)), on(mesh, (5, 16, 16), None, "a"))
    assert found["all-reduce"] == Collective(5, 5 * 2 * 16 * 4, 5 * 2 * 16 * 4 * 2 * 7 / 8)


def test_collectives_in_the_notations_of_the_tpu_compiler():
    mesh = "replica_groups=mesh['a'=4,'b'=2] {'a'}, to_apply=%add"
    text = f"""HloModule m, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {{
  %x = f32[]{{:T(128)}} parameter(0)
  %y = f32[]{{:T(128)}} parameter(1)
  ROOT %s = f32[]{{:T(128)}} add(%x, %y)
}}

ENTRY %main (p: bf16[6,512]) -> bf16[24,512] {{
  %p = bf16[6,512]{{1,0:T(8,128)(2,1)}} parameter(0)
  %r = bf16[6,512]{{1,0:T(8,128)(2,1)S(1)}} all-reduce(%p), channel_id=1, {mesh}
  %g = (bf16[6,512]{{1,0}}, bf16[24,512]{{1,0}}, u32[]{{:S(2)}}) all-gather-start(%r), replica_groups=[2,4]<=[4,2]T(1,0)
  %d = bf16[24,512]{{1,0:T(8,128)(2,1)}} all-gather-done(%g)
  %c = (bf16[24,512]{{1,0}}, bf16[24,512]{{1,0}}, u32[]) collective-permute-start(%d), source_target_pairs={{{{0,1}}}}
  ROOT %e = bf16[24,512]{{1,0}} collective-permute-done(%c)
}}
"""
    size = 6 * 512 * 2
    assert collectives(parse(text), 8) == {
        "all-reduce": Collective(1, size, size * 2 * 3 / 4),
        "all-gather": Collective(1, 4 * size, 3 * size),
        "collective-permute": Collective(1, 4 * size, 4 * size),
    }


def test_sizes_of_groups():
    assert group_size("replica_groups={{0,2,4},{1,3,5}}, to_apply=%add", 6) == 3
    assert group_size("replica_groups=[4,2]<=[8], x", 8) == 2
    assert group_size("replica_groups=mesh['a'=4,'b'=2,'c'=3] {'a','c'}", 24) == 12
    assert group_size("replica_groups={}, to_apply=%add", 8) == 8


VARIANTS = [
    ("plain", "global", 1),
    ("sam", "global", 1),
    ("sam", "per_replica", 1),
    ("gam", "global", 1),
    ("gam", "per_replica", 1),
    ("plain", "global", 8),
    ("sam", "global", 8),
    ("gam", "global", 8),
]


def test_every_variant_that_makes_sense():
    assert [tuple(variant) for variant in aot.variants(config(fsdp=(1, 8)))] == VARIANTS


def measure(variant):
    return aot.measure(config(), load_train, variant, jax.devices(), CHIP)


@pytest.fixture(scope="module")
def measured():
    return {variant: measure(variant) for variant in map(aot.Variant._make, VARIANTS[:6])}


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS[6:])
def test_the_other_variants_with_divided_parameters(measured, variant):
    copied, divided = measured[aot.Variant(variant[0], "global", 1)], measure(aot.Variant(*variant))
    assert divided["memory"]["kept"] < 0.5 * copied["memory"]["kept"]
    assert divided["flops"] < 1.5 * copied["flops"] and "all-gather" in divided["collectives"]


def test_each_method_needs_what_it_should(measured):
    sgd, sam, sam_replica, gam, gam_replica = (measured[variant] for variant in list(measured)[:5])
    assert sam["flops"] / sgd["flops"] == pytest.approx(2, rel=0.05)
    assert 5 < gam["flops"] / sgd["flops"] < 7.5
    parameters = 4 * sum(a * b + b for a, b in ((64, 64), (64, 64), (64, 10)))
    for record, passes in ((sgd, 1), (sam, 2), (sam_replica, 1), (gam, 6), (gam_replica, 1)):
        # the average of each gradient, of each of the two terms of a Hessian-vector product, and of a few scalars
        moved = record["collectives"]["all-reduce"]
        assert moved["bytes"] == pytest.approx(passes * parameters, rel=0.03), record
        assert moved["wire_bytes"] == pytest.approx(moved["bytes"] * 2 * 7 / 8)
    assert sgd["memory"]["kept"] > 2 * parameters  # parameters and momentum


def test_divided_parameters_take_less_room(measured):
    copied, divided = measured[aot.Variant("plain", "global", 1)], measured[aot.Variant("plain", "global", 8)]
    assert divided["memory"]["kept"] < 0.5 * copied["memory"]["kept"]
    assert "all-gather" in divided["collectives"] and "all-gather" not in copied["collectives"]


def test_predicted_times_follow_from_the_rates(measured):
    record = measured[aot.Variant("gam", "global", 1)]
    seconds = record["seconds"]
    assert seconds["compute"] == record["flops"] / 1e12
    assert seconds["memory"] == record["memory_traffic_bytes"] / 1e11
    assert seconds["network"] == sum(c["wire_bytes"] for c in record["collectives"].values()) / 1e10
    assert record["step_seconds"] == {"overlapped": max(seconds.values()), "in_turn": sum(seconds.values())}


def test_the_step_of_replicas_is_a_training_step():
    """On the same examples everywhere, each replica's perturbation is the global one."""
    train = aot.train_config(config(hidden=(16,)), load_train, aot.Variant("gam", "global", 1))
    setup, mesh = set_up_without_data(train), make_mesh(DevicesConfig(), 16)
    batch = jax.tree.map(
        lambda rows: np.tile(rows[:2], (8, *[1] * (rows.ndim - 1))), random_batch(setup.pipeline.data_set, 16)
    )
    batch = jax.tree.map(lambda rows: jax.device_put(rows, mesh.batch), batch)
    programs = Programs(setup, mesh)
    together, apart = (aot.lower(setup, mesh, kind, "jvp").compile() for kind in ("global", "per_replica"))
    state = programs.create()
    gam, *base = state.opt_state
    apart = apart(*programs.inputs, state._replace(opt_state=(gam._replace(checks={}), *base)), batch)
    together = together(*programs.inputs, programs.create(), batch)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), together.params, apart.params)
    assert apart.sums.examples == together.sums.examples == 16
    np.testing.assert_allclose(apart.sums.loss, together.sums.loss, rtol=1e-5)


def test_what_does_not_fit_is_said_in_numbers(monkeypatch, tmp_path, capsys):
    small = CHIP._replace(memory_bytes=1e5)
    monkeypatch.setattr(aot, "describe", lambda topology: (jax.devices(), small))
    monkeypatch.setattr(aot, "version", lambda name: "0")
    arguments = ["--config", "digits", "--batch-size", "16", "--methods", "plain", "--workdir", str(tmp_path)]
    assert main(["aot", *arguments]) == 2
    said = capsys.readouterr()
    assert "plain, global, fsdp=1, needs 0.00 GiB of 0.00 GiB a chip" in said.err and "--model.remat" in said.err
    assert "does not fit" in said.out
    results = json.loads((tmp_path / "digits-v5e-16x16.json").read_text())
    assert results["records"][0]["fits"] is False and results["chips"] == 8
    assert "does not fit" in (tmp_path / "digits-v5e-16x16.md").read_text()


def test_a_compiler_that_runs_out_of_memory_is_understood():
    message = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm. Exceeded by 4.75G."
    assert aot.memory_needed(message) == 20.5 * 2**30
    message = "the total memory required for HLO temporaries (23.61G) exceeds available HBM (15.75G)."
    assert aot.memory_needed(message) == 23.61 * 2**30
    assert aot.memory_needed("INTERNAL: something else") is None
    record = {**aot.Variant("gam", "global", 1)._asdict(), "fits": False, "batch_size": 16, "chips": 8}
    record["memory"] = {"peak": 20.5 * 2**30, "available": 15.75 * 2**30}
    assert "does not fit: 130%" in aot_report.table([record])


def test_unknown_slices_and_configs(capsys):
    for topology in ("v5e", "v9:2x2", "v5e:2by2"):
        with pytest.raises(UserError, match="topology must be GENERATION:SHAPE"):
            chips.describe(topology)
    assert main(["aot", "--config", "imagenet_vit_b31"]) == 2
    assert "did you mean 'imagenet_vit_b32'" in capsys.readouterr().err

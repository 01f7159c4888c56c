"""The benchmark counts what programs do, and times what it says that it times."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gam_jax
from experiments.common.hlo import parse
from experiments.common.hlo_cost import matmul_flops, memory_bytes
from experiments.main import main
from experiments.measure.cost import benchmark, benchmark_report, peers, timing
from experiments.measure.cost.cases import cases, train_config
from experiments.measure.cost.config import BenchmarkConfig
from experiments.measure.cost.stand_in import random_batch, set_up_without_data
from experiments.models.config import ModelConfig
from experiments.optim.methods import METHODS

SMALL = ["--networks", "resnet", "--resnet.name", "mlp", "--resnet.width", "1", "--resnet.hidden", "16"]
SMALL += ["--data", "digits", "--batch-size", "8", "--no-peers"]


def counted(fn, *args, weight=matmul_flops, choose=max):
    return parse(jax.jit(fn).lower(*args).compile().as_text()).total(weight, choose)


def test_matrix_products_are_counted():
    a, b = jnp.zeros((3, 5, 7)), jnp.zeros((3, 7, 11))
    assert counted(jnp.matmul, a, b) == 2 * 3 * 5 * 7 * 11


def test_a_loop_counts_as_often_as_it_runs():
    fn = lambda x, w: jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]  # noqa: E731
    assert counted(fn, jnp.zeros((4, 8)), jnp.zeros((6, 8, 8))) == 6 * 2 * 4 * 8 * 8


def test_a_loop_whose_count_xla_does_not_note_is_read_off_its_condition():
    text = """HloModule m

%body (p: (s32[], f32[4,4])) -> (s32[], f32[4,4]) {
  %p = (s32[], f32[4,4]{1,0:T(8,128)S(1)}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[4,4]{1,0:T(8,128)S(1)} get-tuple-element(%p), index=1
  %y = f32[4,4]{1,0:T(8,128)S(1)} convolution(%x, %x), dim_labels=bf_io->bf
  ROOT %t = (s32[], f32[4,4]{1,0}) tuple(%i, %y)
}

%cond (p.1: (s32[], f32[4,4])) -> pred[] {
  %p.1 = (s32[], f32[4,4]{1,0}) parameter(0)
  %j = s32[] get-tuple-element(%p.1), index=0
  %n = s32[]{:T(128)} constant(7)
  ROOT %lt = pred[] compare(%j, %n), direction=LT
}

ENTRY %main (a: f32[4,4]) -> f32[4,4] {
  %a = f32[4,4]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %t.1 = (s32[], f32[4,4]{1,0}) tuple(%zero, %a)
  %w = (s32[], f32[4,4]{1,0}, /*index=2*/f32[1]{0}) while(%t.1), condition=%cond, body=%body
  ROOT %r = f32[4,4]{1,0} get-tuple-element(%w), index=1
}
"""
    assert parse(text).total(matmul_flops) == 7 * 2 * 4**3
    assert parse(text).total(memory_bytes) == 7 * (4 + 4 + 1)  # the condition reads two numbers and writes a bool
    with pytest.raises(ValueError, match="how often the loop w runs"):
        parse(text.replace("constant(7)", "parameter(1)")).total(matmul_flops)


@pytest.mark.parametrize("stride", [1, 2])
def test_convolutions_count_as_xla_counts_them(stride):
    """Padding and dilation multiply nothing, in the convolution and in its two gradients."""
    x, kernel = jnp.zeros((2, 9, 8, 3)), jnp.zeros((3, 3, 3, 5))
    convolve = lambda x, k: jax.lax.conv_general_dilated(  # noqa: E731
        x, k, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    for fn in (convolve, lambda x, k: jax.vjp(convolve, x, k)[1](jnp.ones_like(convolve(x, k)))):
        compiled = jax.jit(fn).lower(x, kernel).compile()
        ours, xla = parse(compiled.as_text()).total(matmul_flops), compiled.cost_analysis()["flops"]
        assert ours > 0 and math.isclose(ours, xla, rel_tol=1e-3), (ours, xla)


def test_of_a_branch_the_dear_and_the_cheap_side_are_told_apart():
    def fn(count, x):
        return jax.lax.cond(count % 10 == 0, lambda: x @ x @ x, lambda: x @ x)

    args = jnp.int32(0), jnp.zeros((4, 4))
    assert [counted(fn, *args, choose=choose) / (2 * 4**3) for choose in (max, min)] == [2, 1]


def test_memory_traffic_of_a_changed_slice_is_the_slice():
    fn = lambda x, row: x.at[3].set(row)  # noqa: E731
    compiled = jax.jit(fn, donate_argnums=0).lower(jnp.zeros((100, 8)), jnp.zeros(8)).compile()
    assert 8 * 4 <= parse(compiled.as_text()).total(memory_bytes) <= 4 * 8 * 4


def config(**changes):
    model = ModelConfig(name="mlp", hidden=(16,))
    return BenchmarkConfig(vit=model, resnet=model, data="digits", batch_size=8, **changes)


def after_one_step(settings):
    """The parameters that each case ends in after one step of each phase from the same state."""
    batch = random_batch(set_up_without_data(train_config(settings, "vit")).pipeline.data_set, 8)
    found = {}
    for case in cases(settings, "vit"):
        start = case.init()  # not compiled: it is small
        for count, (phase, step) in enumerate(case.steps.items()):
            if phase == "skipped" and "hvp" in case.name:
                continue  # the steps of GAM without the product
            state = start._replace(opt_state=optax.tree.set(start.opt_state, count=jnp.int32(count)))
            state = jax.jit(step)(state, batch)
            assert state.step == 1 and state.sums.examples == 8 and np.isfinite(state.sums.loss)
            assert (case.name, phase) not in found
            found[case.name, phase] = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(state.params)])
    return found


def test_forms_of_a_method_are_the_trainer_with_the_same_gradient():
    found = after_one_step(config(methods=("sam", "gam")))
    branch = "GAM, in one program with a branch"
    same = {("GAM", "acting"): ["GAM, hvp=jvp", "GAM, hvp=reverse", "gam_value_and_grad", branch]}
    same["GAM", "acting"].append("gam_value_and_grad, num_microbatches=8")
    same["SAM", "acting"] = ["optax.contrib.sam"]
    for expected, names in same.items():
        for name in names:
            np.testing.assert_allclose(found[name, "acting"], found[expected], rtol=1e-5, atol=1e-6, err_msg=name)
    for name in ("GAM", "SAM"):
        np.testing.assert_allclose(found[name, "skipped"], found["SGD", "acting"], rtol=1e-5, atol=1e-6)
    distances = [np.abs(found["GAM", "acting"] - found[name, "acting"]).max() for name in ("SAM", "SGD")]
    assert min(distances) > 1e-6


@pytest.mark.slow
def test_every_method_is_a_case_of_its_own():
    found = after_one_step(config(intervals=(1,)))
    acting = [name for name, phase in found if phase == "acting"]
    assert len(acting) == len(METHODS) + 3 + 2 + 1
    own = [row.label for name, row in METHODS.items() if name != "friendly_sam"]  # its first step is SAM's
    assert len({tuple(np.round(found[name, "acting"], 7)) for name in own}) == len(own)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folder of the command, what it printed, and by name what it compiled: case, programs by phase, batch."""
    folder, printed, compiled = tmp_path_factory.mktemp("benchmark"), [], {}

    def kept(network, case, batch):
        record, programs = measure_compiled(network, case, batch)
        compiled[case.name] = (case, programs, batch)
        return record, programs

    measure_compiled = benchmark.measure_compiled
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "measure_compiled", kept)
        patch.setattr("builtins.print", lambda *args, **_: printed.append(" ".join(map(str, args))))
        arguments = ["--workdir", str(folder), "--methods", "gam", "--hvp", "linearize", "--rounds", "2"]
        assert main(["benchmark", *SMALL, *arguments, "--intervals", "1", "10"]) == 0
    return folder, "\n".join(printed), compiled


def written_records(folder):
    return json.loads((folder / "benchmark.json").read_text())["records"]


@pytest.mark.parametrize("name", ["GAM", "GAM, in one program with a branch"])
def test_counts_and_phases_of_one_case(written, name):
    folder, _, compiled = written
    sgd, gam = (next(record for record in written_records(folder) if record["case"] == case) for case in ("SGD", name))
    assert sgd["flops"]["acting"] == gam["flops"]["skipped"] > 0 and "skipped" not in sgd["flops"]
    assert gam["flops"]["acting"] > 4 * sgd["flops"]["acting"]
    assert gam["state_bytes"] - sgd["state_bytes"] == 4 * (2 + len(gam_jax.Diagnostics._fields))
    _, programs, _ = compiled[name]
    assert (programs["acting"] is programs["skipped"]) == (name != "GAM")
    assert gam["intervals"] == ([1, 10] if name == "GAM" else [10])


def test_the_step_count_decides_the_phase(written):
    """Each run of a runner starts at its count, whatever ran before."""
    case, programs, batch = written[2]["GAM, in one program with a branch"]
    seen = []

    def watched(state, batch):
        seen.append((int(state.step), int(state.opt_state[0].count)))
        return programs["acting"](state, batch)

    runners = [timing.runner(case, watched, batch, count) for count in (0, 1)]
    seconds = timing.time_rounds(runners, 1, 2, lambda seconds: None)
    assert seconds.shape == (2, 2) and (seconds > 0).all()
    assert seen == 3 * [(0, 0), (0, 0), (1, 1), (1, 1)]


def test_ratios_are_taken_within_each_round():
    assert timing.ratio([2, 4, 30], [1, 2, 10]) == (2.0, 2.0, 2.5)


def test_the_command_writes_json_a_table_and_a_picture(written):
    folder, printed, _ = written
    results = json.loads((folder / "benchmark.json").read_text())
    assert results["made_with"]["jax"] == jax.__version__ and "cores" in results["hardware"]
    assert "--methods gam" in results["command"]
    gam = next(r for r in results["records"] if r["case"] == "GAM")
    assert [len(gam["seconds"][phase]) for phase in ("acting", "skipped")] == [2, 2]
    assert (folder / "benchmark.png").read_bytes().startswith(b"\x89PNG")
    row = next(
        row for row in benchmark_report.rows(results["records"], "resnet") if (row.name, row.interval) == ("GAM", 10)
    )
    a, s, base = (
        np.array(t)
        for t in (gam["seconds"]["acting"], gam["seconds"]["skipped"], results["records"][0]["seconds"]["acting"])
    )
    assert row.times["mean"].median == pytest.approx(np.median((0.1 * a + 0.9 * s) / base))
    assert row.flops["mean"] == pytest.approx(0.1 * row.flops["acting"] + 0.9)
    text = (folder / "benchmark.md").read_text()
    assert "| GAM " in text and "gam_value_and_grad, num_microbatches=8" in text
    assert "| GAM " in printed


def test_counts_only_and_mistakes(tmp_path, capsys):
    counts = ["--workdir", str(tmp_path / "a"), "--methods", "plain", "--rounds", "0", "--intervals", "1"]
    assert main(["benchmark", *SMALL, *counts]) == 0
    assert not (tmp_path / "a" / "benchmark.png").exists()
    (tmp_path / "file").write_text("")
    assert main(["benchmark", *SMALL, "--workdir", str(tmp_path / "file")]) == 2
    assert main(["benchmark", *SMALL, "--batch-size", "12"]) == 2
    said = capsys.readouterr().err
    assert "cannot write results" in said and "num_microbatches must divide batch_size, got 8 and 12" in said


def test_a_stand_in_has_no_images():
    pipeline = set_up_without_data(train_config(config(), "vit")).pipeline
    for images in (lambda: pipeline.train(0), lambda: pipeline.evaluation("test")):
        with pytest.raises(NotImplementedError, match="digits was not opened"):
            images()


@pytest.mark.torch
@pytest.mark.parametrize("network", ["vit", "resnet"])
def test_pytorch_has_the_same_network_and_methods(network):
    pytest.importorskip("torch", reason="needs the extra 'peers'")
    settings = BenchmarkConfig(batch_size=8)
    batch = random_batch(set_up_without_data(train_config(settings, network)).pipeline.data_set, 8)
    found = [record for record, _ in peers.torch_cases(settings, network, batch)]
    flops = [record["flops"]["acting"] / found[0]["flops"]["acting"] for record in found]
    assert flops == pytest.approx([1, 2, 6, 4], rel=0.02)
    sgd = next(cases(settings, network))
    assert benchmark.measure_compiled(network, sgd, batch)[0]["flops"]["acting"] == pytest.approx(
        found[0]["flops"]["acting"], rel=0.1
    )

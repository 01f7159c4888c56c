"""The programs in examples/: they learn, and the one line that makes them GAM's is the only one that changes."""

import pathlib
import re

import jax
import pytest

FOLDER = pathlib.Path(__file__).parents[1] / "examples"
EXAMPLES = [FOLDER / name for name in ("equinox_mlp.py", "linen_mesh.py", "nnx_cnn.py")]
MARKED = re.compile(r"^( +)# before: (.*)\n +(.*gam_jax.*)\n", re.MULTILINE)


def run(source, steps):
    """The accuracy after some steps of a program, on the 8 devices of the tests."""
    scope = {"__name__": "example"}
    with jax.numpy_rank_promotion("allow"):  # Flax adds a bias of rank 1
        exec(source, scope)
        return scope["main"](steps=steps)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_learn(path, capsys):
    assert run(path.read_text(), steps=50) > 0.9
    printed = capsys.readouterr().out
    losses = [float(loss) for loss in re.findall(r"loss (\d+\.\d+)", printed)]
    assert losses[-1] < 0.25 * losses[0]
    assert float(re.findall(r"first-order flatness (\d\.\d+)", printed)[0]) > 0
    assert path.stem != "linen_mesh" or "8 devices" in printed


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_one_line_changes(path):
    """With the line that stood there before, it trains as well; gam_jax then only measures at the end."""
    source = path.read_text()
    assert len(MARKED.findall(source)) == 1
    before = MARKED.sub(r"\1\2\n", source)
    assert len(re.findall(r"^.*gam_jax\..*$", before, re.MULTILINE)) == 1
    assert "has_diagnostics" not in MARKED.findall(source)[0][2]
    assert run(before, steps=2) > 0

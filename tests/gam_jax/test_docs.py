"""What README and the docstrings show, executed."""

import dataclasses
import doctest
import importlib
import inspect
import pathlib
import pkgutil
import pydoc
import re
import subprocess
import sys
import typing

import pytest

import gam_jax
from tests.readme import EXAMPLES

ROOT = pathlib.Path(__file__).parents[2]
MODULES = [m.name for m in pkgutil.walk_packages(gam_jax.__path__, "gam_jax.")]


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


ROOMS = [gam_jax, gam_jax.flatness]
PUBLIC = [(room, name) for room in ROOMS for name in room.__all__]
FUNCTIONS = [getattr(room, name) for room, name in PUBLIC if inspect.isfunction(getattr(room, name))]


@pytest.mark.parametrize("room", ROOMS)
def test_everything_public_is_in_all(room):
    """What a module of the room shows without an underscore is imported here if it is meant for a user, and named."""
    here = {n for n, value in vars(room).items() if n[0] != "_" and not inspect.ismodule(value)}
    submodules = {"flatness"} & set(vars(room))
    assert sorted(here | submodules) == room.__all__
    named = re.findall(r":(?:func|class|data):`(\w+)`", room.__doc__)
    assert set(named) | submodules == set(room.__all__)  # the docstring tells what there is


@pytest.mark.parametrize(("room", "name"), PUBLIC)
def test_everything_public_is_documented(room, name):
    """A function with an example, a class with its attributes; the literals in the options."""
    value = getattr(room, name)
    if name in ("HvpMode", "Between", "GroupsBy"):
        assert set(typing.get_args(value)) <= set(re.findall(r"[a-z_]+", gam_jax.Options.__doc__))
    elif inspect.isclass(value):
        fields = getattr(value, "_fields", None) or [f.name for f in dataclasses.fields(value)]
        assert [f for f in fields if f"  {f}: " not in value.__doc__] == []
    elif inspect.isfunction(value):
        assert [part for part in ("Args:", "Returns:", "Raises:", ">>> ") if part not in value.__doc__] == []
    else:
        assert value is gam_jax.flatness


@pytest.mark.parametrize("room", ROOMS)
def test_help_lists_every_function(room):
    text = pydoc.render_doc(room, renderer=pydoc.plaintext)
    listed = text[text.index("FUNCTIONS") :]
    assert [n for n in room.__all__ if inspect.isfunction(getattr(room, n)) and f"\n    {n}(" not in listed] == []


@pytest.mark.parametrize("value", [*FUNCTIONS, gam_jax.Options, gam_jax.flatness.DataOptions])
def test_help_shows_a_signature_that_a_person_can_read(value):
    shown = str(inspect.signature(value))
    assert re.findall(r"\w+\.\w+", re.sub(r"\d\.\d+", "", shown)) == []  # no module names
    assert "'jvp'" not in shown and "'hold'" not in shown and "float | Array | Callable" not in shown  # but their names
    assert "**" not in shown


def test_help_of_sam():
    text = pydoc.render_doc(gam_jax.sam, renderer=pydoc.plaintext)
    text = " ".join(text.split()).replace("( ", "(")  # from Python 3.13 on a line for each parameter
    first = "sam(loss_fn: LossFn, rho: ScalarOrSchedule = 0.05, *, gamma: ScalarOrSchedule = 0.0, ascent_steps: int = 1"
    assert first in text
    assert "between: Between = 'skip', look_ratio: float | Array = 0.5, max_ratio: float | Array | None = None" in text


@pytest.mark.parametrize("code", EXAMPLES)
def test_readme_examples(code):
    """In a process of its own, on one device and without the strictness of the tests, as a reader would."""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()


def test_the_light_library_needs_jax_and_optax_only():
    """Importing gam_jax imports none of what the extras bring."""
    heavy = {"flax", "matfree", "chex", "equinox", "matplotlib", "tyro", "rich", "sklearn", "scipy.stats", "orbax"}
    code = f"import sys, gam_jax; print(sorted({heavy!r} & set(sys.modules)))"
    plain = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    optax_alone = subprocess.run(
        [sys.executable, "-c", code.replace("gam_jax", "optax")], capture_output=True, text=True, check=True
    )
    assert plain.stdout == optax_alone.stdout

"""What README and the docstrings show, executed."""

import doctest
import importlib
import pathlib
import pkgutil
import re
import subprocess
import sys

import pytest

import gam_jax

ROOT = pathlib.Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
MODULES = [m.name for m in pkgutil.walk_packages(gam_jax.__path__, "gam_jax.")]


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_every_public_function_has_an_example():
    functions = [getattr(gam_jax, n) for n in dir(gam_jax) if not n.startswith("_") and n.islower()]
    without = [
        f.__name__ for f in functions if callable(f) and f.__module__.startswith("gam_jax") and ">>>" not in f.__doc__
    ]
    assert without == []


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
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

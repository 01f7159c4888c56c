"""Builds the distribution, and uses the wheel as somebody does who has nothing else of the repository: `make wheel`.

README's examples run in an empty folder; pyright finds no error in them, in examples/ and in a user's strict program.
"""

import json
import shutil
import site
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

from tests.readme import EXAMPLES

ROOT = Path(__file__).parents[1]
DIST = ROOT / "dist"
IS_THE_WHEELS = """
import sys, gam_jax
assert gam_jax.__file__.startswith(sys.prefix), f"expected gam_jax in {sys.prefix}, got {gam_jax.__file__}"
"""


def run(*command: str | Path, cwd: Path = ROOT) -> None:
    print("+", *(str(word).strip().partition("\n")[0] for word in command[1:]), flush=True)
    subprocess.run(command, cwd=cwd, check=True)


def build() -> Path:
    """The wheel, made of the sdist, both checked."""
    shutil.rmtree(DIST, ignore_errors=True)
    run(sys.executable, "-m", "build", "--outdir", DIST)
    run(sys.executable, "-m", "twine", "check", "--strict", *DIST.iterdir())
    (wheel,) = DIST.glob("*.whl")
    return wheel


def install(wheel: Path, environment: Path) -> Path:
    """The Python of a new environment: the wheel, and what is installed here but for the clone."""
    venv.create(environment)
    python = environment / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel)
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "installed_here.pth").write_text("\n".join(site.getsitepackages()))
    return python


def use(python: Path, folder: Path) -> None:
    """Runs README's examples, then reads them and the others as a type checker does."""
    for number, example in enumerate(EXAMPLES):
        (folder / f"readme_{number}.py").write_text(example)
    for program in (IS_THE_WHEELS, *EXAMPLES):
        run(python, "-c", program, cwd=folder)
    for path in (*(ROOT / "examples").glob("*.py"), ROOT / "tests" / "user.py"):
        shutil.copy(path, folder)
    (folder / "pyrightconfig.json").write_text(json.dumps({"include": ["."]}))
    run(sys.executable, "-m", "pyright", "--pythonpath", python, cwd=folder)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as empty:
        python = install(build(), Path(empty, "environment"))
        work = Path(empty, "work")
        work.mkdir()
        use(python, work)

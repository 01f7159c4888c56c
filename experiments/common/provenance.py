"""Where numbers come from: versions, source code, hardware, command."""

import ast
import contextlib
import datetime
import hashlib
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

import gam_jax

APART = """
    main.py commands.py configs study/report few_shot/report.py measure/cost measure/flatness/figures.py
    measure/flatness/landscape_figures.py measure/flatness/looks.py measure/flatness/conclusions.py
    measure/instances/figures.py train/curves.py data/prepare.py
    common/plotting.py common/markdown.py common/progress.py
""".split()
"""Code that shows results and does not decide them; a config decides, and is recorded whole."""
_PACKAGES = ("jax", "jaxlib", "optax", "flax", "numpy", "scikit-learn", "orbax-checkpoint")


def provenance() -> dict[str, str]:
    """Versions of what the numbers depend on, and a fingerprint of our own code that decides them, comments aside."""
    digest = hashlib.sha256()
    for root in (Path(gam_jax.__file__).parent, Path(__file__).parents[1]):
        for path in sorted(root.rglob("*.py")):
            name = path.relative_to(root)
            if not any(name.is_relative_to(apart) for apart in APART):
                digest.update(f"{name.as_posix()}\0{_code(path)}\0".encode())
    versions = {name: version(name) for name in _PACKAGES}
    return {"gam_jax": gam_jax.__version__, **versions, "source": digest.hexdigest()[:12]}


def changes(before: dict[str, str], now: dict[str, str]) -> str:
    """What differs between two provenances, in words; empty if nothing does."""
    return ", ".join(f"{name} {before.get(name)} -> {now[name]}" for name in now if before.get(name) != now[name])


def _code(path: Path) -> str:
    """A Python file without its comments, docstrings and layout."""
    tree = _parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            node.body = [line for line in node.body if not _is_text(line)]
    return ast.dump(tree)


def _parse(text: str) -> ast.Module:
    """Again where CPython 3.11 mixes up two threads that parse at the same time (its issue 106905)."""
    for _ in range(10):
        with contextlib.suppress(SystemError):
            return ast.parse(text)
    return ast.parse(text)


def _is_text(line: ast.stmt) -> bool:
    return isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant) and isinstance(line.value.value, str)


def session(command: str) -> dict[str, Any]:
    """When, where and how a command runs."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    cpu = names[0] if names else platform.processor() or platform.machine()
    devices = ", ".join(sorted({device.device_kind for device in jax.devices()}))
    return {
        "command": command,
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "hardware": f"{cpu}, {os.cpu_count()} cores; JAX on {jax.default_backend()} ({jax.device_count()} x {devices})",
        "python": platform.python_version(),
    }

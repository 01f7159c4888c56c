"""What must not grow while a loop runs: compiled programs, live arrays, Python objects and resident memory."""

import contextlib
import gc
import re
from collections.abc import Iterator
from pathlib import Path

import jax

_COMPILING = {f"/jax/core/compile/{name}_duration" for name in ("jaxpr_to_mlir_module", "backend_compile")}


@contextlib.contextmanager
def nothing_compiled() -> Iterator[None]:
    """Nothing is lowered or compiled inside; outside jit, what is differentiated is traced on every step."""
    seen = []

    def listen(event: str, _: float, **about: str) -> None:
        if event in _COMPILING:
            seen.append(about.get("fun_name"))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert not seen, f"compiled {seen[:5]}, expected nothing"


@contextlib.contextmanager
def nothing_grown(megabytes: float = 20, objects: int = 100) -> Iterator[None]:
    """Inside, no more arrays come to live, and resident memory and Python's objects grow by less than this.

    In a process that has compiled hundreds of programs the allocator alone moves by several megabytes.
    """
    before = _alive()
    yield
    arrays, tracked, resident = (now - then for now, then in zip(_alive(), before, strict=True))
    assert arrays <= 0, f"{arrays} more live arrays than the {before[0]} at the start, expected none"
    assert tracked < objects, f"{tracked} more Python objects than at the start, expected fewer than {objects}"
    assert resident < megabytes, f"resident memory grew by {resident:.1f} MB, expected less than {megabytes}"


def _alive() -> tuple[int, int, float]:
    """Live arrays, objects that Python's garbage collector tracks, and resident megabytes."""
    gc.collect()
    return len(jax.live_arrays()), len(gc.get_objects()), _resident()


def _resident() -> float:
    """Megabytes."""
    (found,) = re.findall(r"^VmRSS:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.M)
    return int(found) / 1e3

"""A pytest plugin: names of newer versions of JAX that tests use, and the library does not."""

import functools

import jax
import jax.experimental

import gam_jax  # noqa: F401  (it has chosen its own names when the tests get theirs)

_monitoring = jax._src.monitoring


def _pcast(tree, axes, *, to):
    return jax.tree.map(functools.partial(jax.lax.pvary, axis_name=axes), tree)


if not hasattr(jax, "enable_x64"):
    jax.enable_x64 = jax.experimental.enable_x64
if not hasattr(jax, "set_mesh"):
    jax.set_mesh = jax.sharding.use_mesh
if not hasattr(jax.lax, "pcast"):
    jax.lax.pcast = _pcast
if not hasattr(jax.monitoring, "unregister_event_duration_listener"):
    jax.monitoring.unregister_event_duration_listener = _monitoring._unregister_event_duration_listener_by_callback

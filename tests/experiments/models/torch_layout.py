"""Our variables as PyTorch would hold them; written apart from the code that reads them."""

import functools

import jax
import numpy as np

from experiments.models.config import ModelConfig
from experiments.models.efficientnet import efficientnet_b0
from experiments.models.swin import swin_t

MAKE = {"efficientnet_b0": efficientnet_b0, "swin_t": swin_t}
LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
    "relative_position": "relative_position_bias_table",
}


def config(model, **fields):
    return ModelConfig(**({"name": model} | fields))


@functools.cache
def shapes(model, width=1.0, classes=1000):
    """Of parameters and running statistics."""
    return jax.eval_shape(MAKE[model](config(model, width=width), (64, 64, 3), classes).init, jax.random.key(0))


def zeros(model, **sizes):
    return jax.tree.map(lambda s: jax.device_put(np.zeros(s.shape, s.dtype)), shapes(model, **sizes))


def in_torch_layout(variables, names):
    """Tensors by name, for (parameters, running statistics) as arrays of NumPy."""
    tensors = {}
    for keys, array in jax.tree.leaves_with_path(variables):
        *module, leaf = (key.key for key in keys[1:])
        layers = names[".".join(module)]
        for layer, part in zip(layers, np.split(array, len(layers), axis=-1), strict=True):
            if leaf == "kernel":
                part = part.T if part.ndim == 2 else part.transpose(3, 2, 0, 1)
            name = f"{layer}.{LEAVES[leaf]}"
            assert name not in tensors
            tensors[name] = np.ascontiguousarray(part)
    return tensors

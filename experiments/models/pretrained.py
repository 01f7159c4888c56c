"""Published weights for fine-tuning, from a .safetensors file on disk, as transformers and timm write them.

The format holds nothing but named arrays. PyTorch's own files are pickles, which can run code when they are opened, and
are refused.
"""

import logging
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from experiments.common.errors import UserError, require
from experiments.models import pretrained_names
from experiments.models.config import ModelConfig
from experiments.models.functional import Params, State

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".tar")
_NOT_WEIGHTS = ("num_batches_tracked", "relative_position_index", "attn_mask")
_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
    "relative_position": "relative_position_bias_table",
}
_log = logging.getLogger(__name__)


class _Leaf(NamedTuple):
    """An array of ours, and the names of the tensors that are joined along its last axis to fill it."""

    name: str
    array: jax.Array
    tensors: tuple[str, ...]


def load(path: Path, config: ModelConfig, params: Params, model_state: State) -> tuple[Params, State]:
    """Parameters and running statistics from the file, with types, shapes and shardings of the ones given.

    A classifier for another number of classes stays as it was initialised, and a warning says so. Everything else must
    be in the file, and nothing but that.

    Args:
      path: a .safetensors file.
      config: the network that the weights are for: efficientnet_b0 or swin_t.
      params: its parameters at initialisation.
      model_state: its running statistics.

    Raises:
      UserError: naming the tensors that are missing, unexpected, or of another shape or type.
    """
    tensors = _read(path)
    arrays, structure = jax.tree.flatten_with_path((params, model_state))
    leaves = _match(path, config.name, arrays, tensors)
    kept = _has_other_classes(leaves, tensors)
    if kept:
        _log.warning("%s has a classifier for other classes: the one here stays as initialised", path)
    stays = [kept and _in_classifier(leaf) for leaf in leaves]
    _check_arrays(path, [leaf for leaf, stay in zip(leaves, stays, strict=True) if not stay], tensors)
    filled = [leaf.array if stay else _fill(leaf, tensors) for leaf, stay in zip(leaves, stays, strict=True)]
    return jax.tree.unflatten(structure, filled)


def _read(path: Path) -> dict[str, np.ndarray]:
    require(
        path.suffix.lower() not in _PICKLES,
        f"model.pretrained must be a .safetensors file, got {path}: files of that kind can run code when they are "
        "opened. If you trust its origin, open it with torch and write it anew with safetensors.torch.save_file",
    )
    require(path.suffix == ".safetensors", f"model.pretrained must be a .safetensors file, got {path}")
    require(path.is_file(), f"model.pretrained: there is no file {path}")
    try:
        return safetensors.numpy.load_file(path)
    except Exception as error:  # NumPy raises several kinds for types that it lacks, bfloat16 among them
        raise UserError(f"model.pretrained: {path} cannot be read as safetensors with NumPy: {error}") from error


def _match(path: Path, model: str, arrays: list[Any], tensors: dict[str, np.ndarray]) -> list[_Leaf]:
    """Our arrays with their names in the naming that fits the file best; raises unless it fits exactly."""
    namings = pretrained_names.namings(model)
    require(len(namings) > 0, f"model.pretrained is for efficientnet_b0 and swin_t, got {model!r}")
    candidates = {naming: [_leaf(keys, array, names) for keys, array in arrays] for naming, names in namings.items()}

    def missing(naming: str) -> list[str]:
        return [name for leaf in candidates[naming] for name in leaf.tensors if name not in tensors]

    naming = min(candidates, key=lambda naming: len(missing(naming)))
    used = {name for leaf in candidates[naming] for name in leaf.tensors}
    unexpected = [name for name in tensors if name not in used and not name.endswith(_NOT_WEIGHTS)]
    problems = {"missing": missing(naming), "unexpected": unexpected}
    said = "; ".join(f"{what}: {_some(names)}" for what, names in problems.items() if names)
    require(not said, f"{path} does not hold {model} as {naming} names it. {said}")
    if (model, naming) == ("efficientnet_b0", "timm"):
        _log.warning("%s must be one of timm's tf_efficientnet_b0; its efficientnet_b0 computes something else", path)
    return candidates[naming]


def _leaf(keys: tuple[Any, ...], array: jax.Array, names: pretrained_names.Names) -> _Leaf:
    *module, kind = (entry.key for entry in keys[1:])  # the first one tells parameters from running statistics
    layer = ".".join(module)
    return _Leaf(f"{layer}.{kind}", array, tuple(f"{name}.{_LEAVES[kind]}" for name in names[layer]))


def _some(names: list[str], most: int = 10) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def _in_classifier(leaf: _Leaf) -> bool:
    return leaf.name.startswith("classifier.")


def _has_other_classes(leaves: list[_Leaf], tensors: dict[str, np.ndarray]) -> bool:
    """Whether the classifier differs from ours in the number of classes, and in nothing else."""

    def differs(leaf: _Leaf) -> bool:
        ours, theirs = leaf.array.shape, _transposed(leaf, tensors[leaf.tensors[0]]).shape
        return len(ours) == len(theirs) and ours[:-1] == theirs[:-1] and ours[-1] != theirs[-1]

    return all(differs(leaf) for leaf in leaves if _in_classifier(leaf))


def _check_arrays(path: Path, leaves: list[_Leaf], tensors: dict[str, np.ndarray]) -> None:
    def fits(leaf: _Leaf, name: str) -> bool:
        shape = (*leaf.array.shape[:-1], leaf.array.shape[-1] // len(leaf.tensors))
        tensor = _transposed(leaf, tensors[name])
        return tensor.shape == shape and bool(jnp.issubdtype(tensor.dtype, jnp.floating))

    wrong = [
        f"{name} {tensors[name].dtype}{list(tensors[name].shape)} for our {leaf.name} {list(leaf.array.shape)}"
        for leaf in leaves
        for name in leaf.tensors
        if not fits(leaf, name)
    ]
    require(not wrong, f"{path} holds arrays of another shape or type than the network: {_some(wrong)}")


def _transposed(leaf: _Leaf, tensor: np.ndarray) -> np.ndarray:
    """PyTorch's kernels are [outputs, inputs, ...], ours [..., inputs, outputs]."""
    if leaf.name.endswith(".kernel") and tensor.ndim >= 2:
        return np.transpose(tensor, (*range(2, tensor.ndim), 1, 0))
    return tensor


def _fill(leaf: _Leaf, tensors: dict[str, np.ndarray]) -> jax.Array:
    parts = [_transposed(leaf, tensors[name]) for name in leaf.tensors]
    return jax.device_put(np.concatenate(parts, -1).astype(leaf.array.dtype), leaf.array.sharding)

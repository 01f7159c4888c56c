"""The records of a measured checkpoint, checked where they are read: what their tables take from them is there."""

from pathlib import Path

from experiments.common.errors import require
from experiments.common.kinds import COUNT, NUMBER, TEXT, Fields, check_fields, list_of, one_of
from experiments.common.store import read_object
from experiments.measure.flatness.measure import Result
from experiments.optim.methods import METHODS

_CHECKPOINT: Fields = {
    "name": TEXT,
    "step": COUNT,
    "config": {"optim": {"method": one_of(*METHODS)}, "averaging": TEXT},
}
_POINT: Fields = {
    "checkpoint": _CHECKPOINT,
    "measured": {
        "point": dict.fromkeys(("loss", "accuracy", "test_accuracy", "gradient_norm", "parameter_norm"), NUMBER),
        "top_eigenvalues": {"values": list_of(NUMBER)},
        "trace": {"value": NUMBER, "standard_error": NUMBER},
        "local_minima": {"mean_minima": NUMBER, "minima_standard_error": NUMBER},
    },
}


def read_point(path: Path) -> Result:
    """What :func:`experiments.measure.flatness.measure.measure` has written there, of the parameters themselves.

    Raises:
      UserError: if it cannot be read, or has not what the table is made of; names file, field and value.
    """
    result = read_object(path)
    check_fields(str(path), result, _POINT)
    return result


def read_slices(path: Path) -> Result:
    """What it has written there of the loss along lines through the parameters.

    Raises:
      UserError: as :func:`read_point`.
    """
    result = read_object(path)
    check_fields(str(path), result, {"checkpoint": _CHECKPOINT, "settings": {"points": COUNT}, "measured": {}})
    lines = [name for name in result["measured"] if name.startswith("line")]
    require(len(lines) > 1, f"{path} has {len(lines)} lines, expected 2 or more")
    line: Fields = dict.fromkeys(("x", "values"), list_of(NUMBER, result["settings"]["points"]))
    check_fields(str(path), result, {"measured": dict.fromkeys(lines, line)})
    return result

"""The record of a measured checkpoint, checked where it is read: what its table takes from it is there."""

from pathlib import Path

from experiments.common.kinds import COUNT, NUMBER, TEXT, Fields, check_fields, list_of, one_of
from experiments.common.store import read_object
from experiments.measure.flatness.measure import Result
from experiments.optim.methods import METHODS

_POINT: Fields = {
    "checkpoint": {
        "name": TEXT,
        "step": COUNT,
        "config": {"optim": {"method": one_of(*METHODS)}, "averaging": TEXT},
    },
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

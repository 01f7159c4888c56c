"""What measured checkpoints say, in a sentence for each kind of measurements."""

from collections.abc import Sequence

from experiments.measure.flatness.landscape_figures import rises
from experiments.measure.flatness.looks import looks
from experiments.measure.flatness.measure import Result


def flatness_conclusion(results: Sequence[Result]) -> str:
    """The top eigenvalues of the flattest and of the sharpest network."""
    return _extremes(
        results, "top Hessian eigenvalue", [r["measured"]["top_eigenvalues"]["values"][0] for r in results]
    )


def landscape_conclusion(results: Sequence[Result]) -> str:
    """How far the loss rises around the flattest and around the sharpest network."""
    return _extremes(results, "mean rise of the loss along a line", [float(rises(result).mean()) for result in results])


def _extremes(results: Sequence[Result], what: str, values: Sequence[float]) -> str:
    """The least and the largest of the values, with their networks; the one value if there is one."""
    found = sorted(zip(values, [look.label for look in looks(results)], strict=True))
    (least, flattest), (most, sharpest) = found[0], found[-1]
    if len(found) == 1:
        return f"{flattest}: {what} {least:.3g}"
    return f"By the {what} {flattest} is the flattest of {len(found)} networks, {least:.3g}; {sharpest} has {most:.3g}"


CONCLUSIONS = {"flatness": flatness_conclusion, "landscape": landscape_conclusion}

"""How pictures look, and how they are written."""

from contextlib import AbstractContextManager
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure


def style() -> AbstractContextManager[None]:
    """How all pictures look."""
    return plt.rc_context({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})


def save(figure: Figure, path: Path) -> Path:
    """Writes a picture, whole or not at all, and closes it."""
    partial = path.with_name("partial.png")
    figure.savefig(partial, dpi=120, pil_kwargs={"optimize": True})
    plt.close(figure)
    return partial.replace(path)

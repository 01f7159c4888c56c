"""How pictures look, and how they are written."""

from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from gam_jax.flatness._plots import style as style


def save(figure: Figure, path: Path) -> Path:
    """Writes a picture, whole or not at all, and closes it."""
    partial = path.with_name("partial.png")
    figure.savefig(partial, dpi=120, pil_kwargs={"optimize": True})
    plt.close(figure)
    return partial.replace(path)

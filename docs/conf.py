"""How Sphinx builds the site: `make docs`."""

import os
import pathlib
import shutil

import gam_jax

project = "gam_jax"
author = "The gam_jax authors"
copyright = author
version = release = gam_jax.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx.ext.intersphinx",
]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = "gam_jax"
html_static_path = ["_static"]
html_css_files = ["site.css"]

myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 120
nb_merge_streams = True  # what a cell prints is one block

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # signatures show them
napoleon_use_rtype = False
napoleon_custom_sections = [("Cost", "notes_style")]

# Reports stand beside their records, and pages link to them there; the site has copies, as pages.
REPORTS = pathlib.Path(__file__).parent / "reports"
shutil.rmtree(REPORTS, ignore_errors=True)
shutil.copytree(REPORTS.parents[1] / "experiments/results", REPORTS, ignore=shutil.ignore_patterns("*.json*", "*.csv"))


def setup(app):
    def to_copies(app, page, source):
        source[0] = source[0].replace("](../experiments/results/", "](/reports/")

    app.connect("source-read", to_copies)


# Inventories come over the network: where there is one, say so.
intersphinx_mapping = (
    {
        "python": ("https://docs.python.org/3", None),
        "jax": ("https://docs.jax.dev/en/latest", None),
        "optax": ("https://optax.readthedocs.io/en/latest", None),
        "flax": ("https://flax.readthedocs.io/en/latest", None),
    }
    if os.environ.get("DOCS_ONLINE")
    else {}
)

"""How Sphinx builds the site: `make docs`."""

import os

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

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # signatures show them
napoleon_use_rtype = False
napoleon_custom_sections = [("Cost", "notes_style")]

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

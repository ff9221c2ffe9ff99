"""Sphinx configuration. `make docs` assembles the sources first (`docs/assemble.py`) and treats warnings as errors."""

from seqssm.version import __version__

project = "seqssm"
author = "The seqssm developers"
copyright = "The seqssm developers, Apache-2.0"
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"seqssm {release}"
html_static_path = ["static"]
html_css_files = ["site.css"]
exclude_patterns = ["_build"]

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings have types, shapes and units where they matter
autodoc_inherit_docstrings = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

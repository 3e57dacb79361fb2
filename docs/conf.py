"""Sphinx settings; the pages under docs/generated are written by docs/generate.py before each build."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

import generate  # noqa: E402

from napari_fmseg.core.package import __version__  # noqa: E402

project = "napari-fmseg"
author = "The napari-fmseg developers"
project_copyright = "the napari-fmseg developers, Apache-2.0"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
exclude_patterns = ["_build", "generated/packages.md", "generated/errors_table.md"]
default_role = "literal"
nitpicky = False

myst_enable_extensions = ["colon_fence", "deflist", "attrs_inline"]
myst_heading_anchors = 3
smartquotes = False  # options such as --image stay as they are typed
suppress_warnings = ["myst.header"]

autodoc_typehints = "description"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_google_docstring = False
napoleon_use_rtype = False
copybutton_exclude = ".linenos, .gp, .go"

html_theme = "furo"
pygments_dark_style = "github-dark"
html_title = "napari-fmseg"
html_static_path = ["static"]
html_css_files = ["fmseg.css"]
html_theme_options = {
    "announcement": "Research use only, not a medical device.",
    "light_css_variables": {"color-brand-primary": "#00658c", "color-brand-content": "#00658c"},
    "dark_css_variables": {"color-brand-primary": "#6cc7ee", "color-brand-content": "#6cc7ee"},
}
html_show_sourcelink = False


def setup(app: object) -> None:
    """Write the generated pages before Sphinx looks for sources."""
    generate.write_pages(ROOT / "docs" / "generated")

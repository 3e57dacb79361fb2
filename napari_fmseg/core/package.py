"""The version of the package and where its shipped data lie."""

from __future__ import annotations

from pathlib import Path

__all__ = ["__version__", "data_folder", "import_root"]

__version__ = "0.2.0"
_PACKAGE = Path(__file__).parents[1]


def import_root() -> Path:
    """Return the folder that has to be on `sys.path` for this very package to be imported."""
    return _PACKAGE.parent


def data_folder(name: str) -> Path:
    """Return the folder `name` (``"resources"``, ``"weights"``) of the installed package, or of a checkout run in
    place.
    """
    inside = _PACKAGE / name
    return inside if inside.is_dir() else _PACKAGE.parent / name

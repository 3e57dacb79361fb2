"""The version of the package, where its shipped data lie, and the previous names of its modules."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

__all__ = ["__version__", "accept_previous_names", "data_folder", "import_root"]

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


_MOVED = {
    "batch": "pipelines.batch",
    "components": "core.components",
    "convert": "models.convert",
    "errors": "core.errors",
    "events": "core.events",
    "grid": "core.resampling_torch",
    "labels": "core.terminology",
    "lesion_metrics": "evaluation.lesion_metrics",
    "lesions": "evaluation.lesions",
    "measures": "evaluation.volumes",
    "metrics": "evaluation.metrics",
    "phantom": "datasets.phantom",
    "preview": "io.preview",
    "regrid": "core.resampling",
    "uncertainty": "explain.uncertainty",
    "volume": "core.volume",
}
_ROOT = "napari_fmseg."


def accept_previous_names() -> None:
    """Register the previous names of modules that moved in 0.2.0; importing one warns, and ends with 0.3.0."""
    if not any(isinstance(finder, _PreviousNames) for finder in sys.meta_path):
        sys.meta_path.append(_PreviousNames())


class _PreviousNames(MetaPathFinder, Loader):
    """Finds a module that moved, and gives it under its previous name too."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return a spec for a previous name, None for any other."""
        if fullname.startswith(_ROOT) and fullname.removeprefix(_ROOT) in _MOVED:
            return ModuleSpec(fullname, self)
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Import the module by its new name."""
        new = _ROOT + _MOVED[spec.name.removeprefix(_ROOT)]
        warnings.warn(
            f"{spec.name} is now {new}; the previous name ends with version 0.3.0.", DeprecationWarning, stacklevel=2
        )
        module = import_module(new)
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Restore the module's own spec, which the import system has just replaced."""
        spec = module.__spec__
        if spec is not None and spec.loader is self:
            module.__spec__ = spec.loader_state

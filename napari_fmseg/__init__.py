"""Fast 3-D medical image segmentation: a library, a command line and a napari plugin.

The public names below load their module at first use, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from napari_fmseg.core.hardware import apply_cpu_capability
from napari_fmseg.core.package import accept_previous_names

if TYPE_CHECKING:
    from napari_fmseg.core import errors as errors
    from napari_fmseg.core.events import drain as drain
    from napari_fmseg.core.package import __version__ as __version__
    from napari_fmseg.core.resampling import stack_channels as stack_channels
    from napari_fmseg.core.volume import Geometry as Geometry
    from napari_fmseg.core.volume import LabelMap as LabelMap
    from napari_fmseg.core.volume import Volume as Volume
    from napari_fmseg.datasets.phantom import phantom_ct as phantom_ct
    from napari_fmseg.evaluation.lesion_metrics import score_lesions as score_lesions
    from napari_fmseg.evaluation.metrics import score as score
    from napari_fmseg.io import read_labels as read_labels
    from napari_fmseg.io import read_volume as read_volume
    from napari_fmseg.io import write_labels as write_labels
    from napari_fmseg.io import write_volume as write_volume
    from napari_fmseg.models.registry import list_models as list_models
    from napari_fmseg.models.weights import load_model as load_model
    from napari_fmseg.pipelines import SegmentOptions as SegmentOptions
    from napari_fmseg.pipelines import segment as segment
    from napari_fmseg.training import Case as Case
    from napari_fmseg.training import Recipe as Recipe
    from napari_fmseg.training import train as train


apply_cpu_capability()
accept_previous_names()


_MODULES = {
    "Case": "napari_fmseg.datasets.case",
    "Geometry": "napari_fmseg.core.volume",
    "LabelMap": "napari_fmseg.core.volume",
    "Recipe": "napari_fmseg.training",
    "SegmentOptions": "napari_fmseg.pipelines",
    "Volume": "napari_fmseg.core.volume",
    "__version__": "napari_fmseg.core.package",
    "drain": "napari_fmseg.core.events",
    "errors": "napari_fmseg.core.errors",
    "list_models": "napari_fmseg.models.registry",
    "load_model": "napari_fmseg.models.weights",
    "phantom_ct": "napari_fmseg.datasets.phantom",
    "read_labels": "napari_fmseg.io",
    "read_volume": "napari_fmseg.io",
    "score": "napari_fmseg.evaluation.metrics",
    "score_lesions": "napari_fmseg.evaluation.lesion_metrics",
    "segment": "napari_fmseg.pipelines",
    "stack_channels": "napari_fmseg.core.resampling",
    "train": "napari_fmseg.training",
    "write_labels": "napari_fmseg.io",
    "write_volume": "napari_fmseg.io",
}


__all__ = [*_MODULES]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(_MODULES[name])
    value = module if _MODULES[name].endswith(f".{name}") else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""Fast 3-D medical image segmentation: a library, a command line and a napari plugin.

The public names below load their module at first use, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from napari_fmseg.processor import apply_cpu_capability

if TYPE_CHECKING:
    from napari_fmseg import errors as errors
    from napari_fmseg.events import drain as drain
    from napari_fmseg.io import read_labels as read_labels
    from napari_fmseg.io import read_volume as read_volume
    from napari_fmseg.io import write_labels as write_labels
    from napari_fmseg.io import write_volume as write_volume
    from napari_fmseg.lesion_metrics import score_lesions as score_lesions
    from napari_fmseg.metrics import score as score
    from napari_fmseg.models import list_models as list_models
    from napari_fmseg.models import load_model as load_model
    from napari_fmseg.phantom import phantom_ct as phantom_ct
    from napari_fmseg.pipelines import SegmentOptions as SegmentOptions
    from napari_fmseg.pipelines import segment as segment
    from napari_fmseg.regrid import stack_channels as stack_channels
    from napari_fmseg.training import Case as Case
    from napari_fmseg.training import Recipe as Recipe
    from napari_fmseg.training import train as train
    from napari_fmseg.volume import Geometry as Geometry
    from napari_fmseg.volume import LabelMap as LabelMap
    from napari_fmseg.volume import Volume as Volume

__version__ = "0.1.0"

apply_cpu_capability()

_ROOMS = {
    "Case": "training",
    "Geometry": "volume",
    "LabelMap": "volume",
    "Recipe": "training",
    "SegmentOptions": "pipelines",
    "Volume": "volume",
    "drain": "events",
    "errors": "",
    "list_models": "models",
    "load_model": "models",
    "phantom_ct": "phantom",
    "read_labels": "io",
    "read_volume": "io",
    "score": "metrics",
    "score_lesions": "lesion_metrics",
    "segment": "pipelines",
    "stack_channels": "regrid",
    "train": "training",
    "write_labels": "io",
    "write_volume": "io",
}

__all__ = ["__version__", *_ROOMS]


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    room = _ROOMS[name]
    value = getattr(import_module(f"{__name__}.{room}"), name) if room else import_module(f"{__name__}.{name}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

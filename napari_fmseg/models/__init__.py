"""Model cards, weights, settings, conversion, archives and provenance.

The names below load their module at first use: listing models loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from napari_fmseg.models.card import Intensity as Intensity
    from napari_fmseg.models.card import ModelCard as ModelCard
    from napari_fmseg.models.card import NetSpec as NetSpec
    from napari_fmseg.models.registry import find_card as find_card
    from napari_fmseg.models.registry import list_models as list_models
    from napari_fmseg.models.weights import Model as Model
    from napari_fmseg.models.weights import load_model as load_model
    from napari_fmseg.models.weights import save_model as save_model

_MODULES = {
    "Intensity": "card",
    "Model": "weights",
    "ModelCard": "card",
    "NetSpec": "card",
    "find_card": "registry",
    "list_models": "registry",
    "load_model": "weights",
    "save_model": "weights",
}

__all__ = [*_MODULES]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)

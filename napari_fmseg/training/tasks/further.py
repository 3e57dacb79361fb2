"""How a model that was trained before is trained further: what depends on its network and its pipeline."""

from __future__ import annotations

from napari_fmseg.models.card import ModelCard
from napari_fmseg.models.settings import PIPELINES

__all__ = ["RATES", "batch_size", "distillation_weight", "mirror_axes"]

RATES = {"fastunet": 1e-3, "plainconvunet": 2e-3, "residualencoderunet": 2e-3}
"""Learning rates of networks with norms."""


def batch_size(parent: ModelCard, stage: str) -> int:
    """Return how many samples a step has: more, where they are slices."""
    size = PIPELINES[parent.pipeline].settings.of(parent.settings).input_size(stage)
    return 2 if size[0] > 1 else 12


def distillation_weight(parent: ModelCard) -> float:
    """Return how much the answers about classes that nobody labelled count."""
    return 3.0 if parent.pipeline == "nnunet" else 1.0


def mirror_axes(parent: ModelCard) -> str:
    """Return along which axes samples are mirrored: those of nnU-Net's windows, whose results are averaged."""
    axes = parent.settings.get("mirror", ()) if parent.pipeline == "nnunet" else ()
    return "".join("zyx"[axis] for axis in axes)

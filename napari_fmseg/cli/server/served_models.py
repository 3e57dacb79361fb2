"""The models of a server as its clients see them: classes numbered 1, 2, 3... in the order of the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from napari_fmseg.core.errors import FmsegError
from napari_fmseg.core.volume import LabelMap
from napari_fmseg.models.card import ModelCard

__all__ = ["ServedModel", "check_classes", "renumber"]

_MOST_CLASSES = 255


@dataclass(frozen=True)
class ServedModel:
    """A model and the name that clients choose it by."""

    name: str
    card: ModelCard

    @property
    def labels(self) -> dict[str, int]:
        """The number of each class in a result, by its name."""
        return {name: number for number, name in _by_number(self.card.labels).items()}

    def as_json(self) -> dict[str, Any]:
        """Return what clients are told of it."""
        card = self.card
        dice = "" if card.mean_dice is None else f" Mean Dice {card.mean_dice:.2f} on cases it did not learn from."
        several = len(card.channels) > 1
        channels = f" Needs {len(card.channels)} channels: {', '.join(card.channels)}." if several else ""
        limits = f" {card.restriction}" if card.restriction else ""
        return {
            "type": "segmentation",
            "labels": self.labels,
            "dimension": 3,
            "description": f"{card.title}.{dice}{channels}{limits} Research use only. Not a medical device.",
            "config": {},
        }


def check_classes(card: ModelCard) -> None:
    """Refuse a model with more classes than a client can show."""
    if len(card.labels) > _MOST_CLASSES:
        raise FmsegError(
            f"{card.name} has {len(card.labels)} classes; clients take at most {_MOST_CLASSES}. Serve another model."
        )


def renumber(labels: LabelMap, classes: Mapping[int, str]) -> LabelMap:
    """Return labels with the classes numbered 1, 2, 3... in the order of their values, found or not.

    3D Slicer gives the n-th name to the value n, whatever the values are called.

    Parameters
    ----------
    labels
        With the values of `classes`; other values become background.
    classes
        Name of each value.
    """
    numbered = _by_number(classes)
    order = sorted(classes)
    data = np.zeros(labels.data.shape, np.uint8)
    for number, value in enumerate(order, 1):
        data[labels.data == value] = number
    colors = {n: labels.colors[value] for n, value in enumerate(order, 1) if value in labels.colors}
    return LabelMap(data, labels.geometry, labels.meta, numbered, colors)


def _by_number(classes: Mapping[int, str]) -> dict[int, str]:
    return {number: classes[value] for number, value in enumerate(sorted(classes), 1)}

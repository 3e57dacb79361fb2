"""What a brush may write over: nothing of a finished class, and nothing outside an intensity range or another class.

The rules hold for napari's own brush, eraser, bucket and polygon in a layer, before a voxel is written. Where a version
of napari writes in another way, finished classes are put back at the end of the stroke.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import MethodType
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from napari_fmseg._napari.correct.tracking.history import lines_of, revert

__all__ = ["Rules", "protect", "put_back_finished", "rules_of", "share_rules", "write_again"]

Mask = npt.NDArray[np.bool_]


class Rules:
    """The rules of one layer.

    Attributes
    ----------
    finished
        Classes that keep their voxels and get no others.
    inside
        The only class that is painted over, or None. The eraser is free.
    """

    def __init__(self) -> None:
        self.finished: frozenset[int] = frozenset()
        self.inside: int | None = None
        self._image: Any = None
        self._range = (-np.inf, np.inf)

    def limit_range(self, image: Any, low: float, high: float) -> None:
        """Paint only where `image`, on the grid of the labels, lies between two values."""
        self._image, self._range = image, (low, high)

    def forget_image(self) -> None:
        """Paint whatever the intensity."""
        self._image = None

    @property
    def is_free(self) -> bool:
        """Whether everything may be written."""
        return not self.finished and self.inside is None and self._image is None

    def may_write(self, old: npt.NDArray[Any], new: int, index: tuple[Any, ...]) -> Mask:
        """Return where a value may be written.

        Parameters
        ----------
        old
            The values that are there.
        new
            The value to write.
        index
            Where `old` lies in the layer.
        """
        if new in self.finished:
            return np.zeros(old.shape, bool)
        allowed = np.isin(old, list(self.finished), invert=True) if self.finished else np.ones(old.shape, bool)
        if new == 0:
            return allowed
        if self.inside is not None:
            allowed &= old == self.inside
        if self._image is not None:
            values = np.asarray(self._image[index])
            allowed &= (values >= self._range[0]) & (values <= self._range[1])
        return allowed


_rules: WeakKeyDictionary[Any, Rules] = WeakKeyDictionary()


def rules_of(layer: Any) -> Rules:
    """Return the rules of a layer, which hold from now on."""
    found = _rules.get(layer)
    if found is None:
        found = _rules[layer] = Rules()
        _install(layer, found)
    return found


def share_rules(layer: Any, copy: Any) -> None:
    """Make a layer on the same voxels, which another canvas shows, obey the rules of a layer."""
    _rules[copy] = rules_of(layer)
    _install(copy, _rules[copy])


def protect(layer: Any, classes: Iterable[int]) -> None:
    """Mark these classes of a layer, and no others, as finished."""
    finished = frozenset(int(value) for value in classes) - {0}
    rules_of(layer).finished = finished


def put_back_finished(layer: Any, step: list[Any]) -> bool:
    """Undo what a step of the history wrote over finished classes, and leave that out of the step.

    Returns
    -------
    bool
        Whether there was any. napari records some steps before it writes them; `write_again` is for those.
    """
    finished = rules_of(layer).finished
    if not finished:
        return False
    kept, hurt = [], False
    for line, change in zip(list(step), list(lines_of(step)), strict=True):
        old, new = change.old, np.broadcast_to(np.asarray(change.new, change.old.dtype), change.old.shape)
        wrong = (old != new) & (np.isin(old, list(finished)) | np.isin(new, list(finished)))
        hurt |= bool(wrong.any())
        kept.append((change.index, old, np.where(wrong, old, new)) if wrong.any() else line)
    if hurt:
        revert(layer.data, [step])
        step[:] = kept
        write_again(layer, step)
    return hurt


def write_again(layer: Any, step: list[Any]) -> None:
    """Write what a step records, whatever was written meanwhile."""
    for change in lines_of(step):
        layer.data[change.index] = change.new
    layer.refresh()


def _install(layer: Any, rules: Rules) -> None:
    """Make a layer's own tools obey the rules."""
    if hasattr(layer, "_apply_mask_to_data"):  # since napari 0.9 brush, eraser, bucket and polygon all write here
        write_mask = layer._apply_mask_to_data

        def apply(_: Any, data: Any, mask: Any, new_label: int, volume_slice: Any) -> Any:
            if not rules.is_free:
                mask = mask & rules.may_write(data, int(new_label), volume_slice)
            return write_mask(data, mask, new_label, volume_slice)

        layer._apply_mask_to_data = MethodType(apply, layer)
        return
    write_voxels = layer.data_setitem

    def set_item(_: Any, indices: Any, value: Any, refresh: bool = True) -> Any:
        if not rules.is_free and np.ndim(value) == 0:
            allowed = rules.may_write(np.asarray(layer.data[indices]), int(value), indices)
            indices = tuple(np.asarray(part)[allowed] for part in indices)
        return write_voxels(indices, value, refresh)

    layer.data_setitem = MethodType(set_item, layer)

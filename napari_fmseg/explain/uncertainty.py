"""Where a model disagrees with itself: from stage to stage, on parts of the volume, and mirrored.

The most uncertain cases are labelled next. No network and no pipeline need know of it: the volume is segmented as it
is, without its ends, or mirrored, and the label maps of the results and of the coarse stages are compared voxel by
voxel.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt

from napari_fmseg.core.errors import InvalidRecipe
from napari_fmseg.core.events import Event, Progress, StageResult
from napari_fmseg.core.resampling import resample
from napari_fmseg.core.volume import Box, LabelMap, Volume

if TYPE_CHECKING:
    from napari_fmseg.models.weights import Model
    from napari_fmseg.pipelines import SegmentOptions

__all__ = ["STAGE", "case_uncertainty", "mirror_label_pairs", "rank_by_uncertainty", "uncertainty"]

STAGE = "uncertainty"
"""What the result with the map is called."""

_END = 0.08
"""Share of an axis that a part of the volume lacks at one end."""


def uncertainty(
    volume: Volume, model: Model, options: SegmentOptions | None = None, *, flips: str | None = None
) -> Iterator[Event]:
    """Segment a volume and its mirror images, and map where the results differ.

    Parameters
    ----------
    volume, model, options
        As for `napari_fmseg.pipelines.segment`.
    flips
        Patient axes out of ``"zyx"`` to mirror, one at a time; x is left-right. Each costs one more segmentation.
        Classes of a left and a right organ change their names in a mirror along x. ``""`` compares the stages only: a
        body whose sides differ (the liver) looks unlike anything in training when it is mirrored, which raises all
        numbers alike (on the phantom 0.17 became 0.66 by noise without mirrors, and 0.41 became 0.51 with one). None
        compares the stages. Where a model has one stage only, it is mirrored along x, or, where that stage sees the
        whole volume at once, segmented twice more, each time without `_END` of the volume at one end of every axis,
        which such a network sees larger and shifted. (On 32 left atria that were not learned from, the rank correlation
        of this number with the Dice was -0.62, that by a mirror -0.50.)

    Yields
    ------
    Progress, Warned or StageResult
        The labels, and at last ``"uncertainty"``: float32 (z, y, x) on the volume's own grid, the share of all pairs of
        results that disagree, 0..1. Its ``meta["doubt"]`` is the number for the case: see `case_uncertainty`.

    Raises
    ------
    InvalidRecipe
        If `flips` names another axis.
    """
    from napari_fmseg.pipelines import SegmentOptions, segment, stages_of

    by_itself = flips is None and len(stages_of(model.card)) == 1
    parts = _parts(volume.geometry.shape) if by_itself and model.card.pipeline == "phased" else ()
    if flips is None:
        flips = "x" if by_itself and not parts else ""
    if set(flips) - set("zyx") or len(set(flips)) < len(flips):
        raise InvalidRecipe(f"Axes to mirror are made of z, y and x, each at most once; not {flips!r}.")
    options = replace(options or SegmentOptions(), show_stages=True)
    seconds, views = 0.0, 1 + len(parts) + len(flips)
    yield Progress(STAGE, 0, views)
    maps: list[npt.NDArray[np.integer]] = []
    stages: list[LabelMap] = []
    labels: LabelMap | None = None
    for event in segment(volume, model, options):
        if isinstance(event, StageResult):
            seconds += event.seconds
            if event.stage == "labels" and isinstance(event.output, LabelMap):
                labels = event.output
                yield event
            elif isinstance(event.output, LabelMap):
                stages.append(event.output)
        elif not isinstance(event, Progress):
            yield event
    assert labels is not None
    start = time.perf_counter()
    maps.append(labels.data)
    # The last stage is what the labels were made of; the others contradict it where the model is not sure.
    maps += [resample(stage, volume.geometry, order=0).data for stage in stages[:-1]]
    for view, box in enumerate(parts, 1):
        yield Progress(STAGE, view, views)
        maps.append(_segment_part(volume, model, options, box, labels.data))
    _, order, _ = volume.geometry.canonical()
    for view, axis in enumerate(flips, 1 + len(parts)):
        yield Progress(STAGE, view, views)
        index = order["zyx".index(axis)]
        maps.append(_segment_mirrored(volume, model, options, index, swap=axis == "x"))
    share = _disagreement(maps)
    doubt = case_uncertainty(share, maps)
    seconds += time.perf_counter() - start
    yield Progress(STAGE, views, views)
    note = "Nothing was found in any view." if not any(m.any() for m in maps) else ""
    yield StageResult(STAGE, Volume(share, volume.geometry, {"doubt": doubt}), seconds, note)


def _parts(shape: Sequence[int]) -> tuple[Box, ...]:
    """Return the volume without its first slices along each axis, and without its last ones."""
    ends = [round(n * _END) for n in shape]
    first = tuple(slice(end, n) for n, end in zip(shape, ends, strict=True))
    last = tuple(slice(0, n - end) for n, end in zip(shape, ends, strict=True))
    return cast(Box, first), cast(Box, last)


def _segment_part(
    volume: Volume, model: Model, options: SegmentOptions, box: Box, labels: npt.NDArray[np.integer]
) -> npt.NDArray[np.integer]:
    """Return labels of a part of the volume; around it they are `labels`, so that they agree there."""
    from napari_fmseg.core.events import drain
    from napari_fmseg.pipelines import segment

    part = Volume(volume.data[(..., *box)], volume.geometry.crop(box), volume.meta)
    found = labels.copy()
    found[box] = drain(segment(part, model, replace(options, show_stages=False, strict=False))).data
    return found


def _segment_mirrored(
    volume: Volume, model: Model, options: SegmentOptions, index: int, *, swap: bool
) -> npt.NDArray[np.integer]:
    """Return labels of the mirror image, mirrored back."""
    from napari_fmseg.core.events import drain
    from napari_fmseg.pipelines import segment

    turned = Volume(np.flip(volume.data, index - 3), volume.geometry, volume.meta)
    found = np.flip(drain(segment(turned, model, replace(options, show_stages=False, strict=False))).data, index)
    if not swap:
        return found
    names = mirror_label_pairs(model.card.labels)
    table = np.arange(1 + max(model.card.labels, default=0), dtype=found.dtype)
    for label, partner in names.items():
        table[label] = partner
    renamed: npt.NDArray[np.integer] = table[found]
    return renamed


def mirror_label_pairs(labels: Mapping[int, str]) -> dict[int, int]:
    """Return for every label that has a partner on the other side that partner's label."""
    of_name = {name.casefold(): label for label, name in labels.items()}
    found = {}
    for name, label in of_name.items():
        for one, other in (("left", "right"), ("right", "left")):
            partner = of_name.get(name.replace(one, other)) if one in name else None
            if partner is not None:
                found[label] = partner
    return found


def _disagreement(maps: Sequence[npt.NDArray[np.integer]]) -> npt.NDArray[np.float32]:
    """Return the share of the pairs of label maps that differ, per voxel."""
    pairs = list(itertools.combinations(maps, 2))
    share = np.zeros(maps[0].shape, np.float32)
    for one, other in pairs:
        share += one != other
    return share / np.float32(max(1, len(pairs)))


def case_uncertainty(share: npt.NDArray[np.float32], maps: Sequence[npt.NDArray[np.integer]]) -> float:
    """Return one number per case, 0..1: the mean uncertainty where any result has a label; 1 where none does."""
    anything = np.logical_or.reduce([m > 0 for m in maps])
    count = int(anything.sum())
    return float(share[anything].sum() / count) if count else 1.0


def rank_by_uncertainty(uncertainties: Mapping[str, float]) -> tuple[str, ...]:
    """Name the cases, the most doubtful first: the order in which to label them."""
    return tuple(sorted(uncertainties, key=lambda name: (-uncertainties[name], name)))

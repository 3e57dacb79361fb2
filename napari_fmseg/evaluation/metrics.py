"""How well two label maps agree: Dice, surface distances in mm, volumes in ml, for every label."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_fmseg.core.errors import FmsegError, GeometryMismatch
from napari_fmseg.core.volume import Box, LabelMap

__all__ = ["dice_per_label", "labels_by_name", "score"]

_SLAB = 1 << 21  # voxels counted at once: bincount needs 8 bytes for each
_MANY = 1 << 10  # labels from which a table of all pairs would be larger than it is worth

Sizes = npt.NDArray[np.int64]  # voxels of a label in the prediction, in the truth and in both


def score(prediction: LabelMap, truth: LabelMap, *, tolerance_mm: float = 2.0) -> dict[str, dict[str, float]]:
    """Compare a segmentation with the truth, label by label.

    Every label is reported that has a name or occurs in either map; 0 is background. Ids need not be consecutive.

    Parameters
    ----------
    prediction, truth
        Labels (z, y, x) on the same grid. It may be oblique or sheared: distances are taken between true places.
    tolerance_mm
        How far apart two surfaces may lie and still agree, for the normalised surface distance.

    Returns
    -------
    dict
        For every label's name (its number where nobody named it):

        - ``dice``: overlap, 0 to 1.
        - ``hd95_mm``: 95th percentile of the distance from either surface to the other, the larger of the two.
        - ``assd_mm``: mean distance of the points of both surfaces from the other surface.
        - ``nsd``: part of both surfaces that lies within `tolerance_mm` of the other, 0 to 1.
        - ``tolerance_mm``: as given.
        - ``volume_ml``, ``truth_ml``: volume in the prediction and in the truth.
        - ``false_positive_ml``, ``false_negative_ml``: volume that is only in the prediction, only in the truth.

        Surfaces are the voxels of a label with a face neighbour outside it. A label that is in neither map says
        nothing about the prediction: dice, distances and nsd are nan, so that ``numpy.nanmean`` leaves it out.
        A label in one map only: dice 0, nsd 0, distances inf.

    Raises
    ------
    GeometryMismatch
        If the grids differ.
    FmsegError
        If the maps give one id two different names, or the tolerance is negative.

    References
    ----------
    Nikolov et al., Clinically applicable segmentation of head and neck anatomy for radiotherapy, J Med Internet Res
    2021 (normalised surface distance).
    """
    if not tolerance_mm >= 0:
        raise FmsegError(f"The tolerance is {tolerance_mm} mm. Expected a distance of 0 or more.")
    _same_grid(prediction, truth)
    ids, codes, true_codes = _dense(prediction.data, truth.data)
    counts = _count(codes, true_codes, len(ids))
    occurring = {int(v) for v, size in zip(ids, counts, strict=True) if size.any()}
    names = _names(prediction.names, truth.names, occurring)
    boxes = _boxes(codes, true_codes, len(ids))
    code_of = {int(value): code for code, value in enumerate(ids)}
    absent = np.zeros(3, np.int64)
    scores = {}
    for value, name in names.items():
        code = code_of.get(value)
        sizes = absent if code is None else counts[code]
        box = None if code is None else boxes[code]
        distances = (
            _no_surface(sizes) if box is None or not sizes[:2].all()
            else _surfaces(codes[box] == code, true_codes[box] == code, truth, tolerance_mm)
        )  # fmt: skip
        scores[name] = {
            "dice": _dice(sizes), **distances, "tolerance_mm": float(tolerance_mm),
            **_volumes(sizes, truth.geometry.voxel_ml),
        }  # fmt: skip
    return scores


def labels_by_name(prediction: LabelMap, truth: LabelMap) -> dict[str, int]:
    """Return the number of every label that `score` reports, by the name under which it does; raises as `score`."""
    _same_grid(prediction, truth)
    occurring = {int(v) for labels in (prediction, truth) for v in np.unique(labels.data)}
    return {name: value for value, name in _names(prediction.names, truth.names, occurring).items()}


def dice_per_label(
    prediction: npt.NDArray[Any], truth: npt.NDArray[Any], n_classes: int
) -> npt.NDArray[np.float64]:  # fmt: skip
    """Return Dice of the labels 1 to `n_classes` - 1, in one pass over the voxels.

    Parameters
    ----------
    prediction, truth
        Integer arrays of one shape with values from 0 to `n_classes` - 1.
    n_classes
        Classes with the background.

    Returns
    -------
    numpy.ndarray
        (n_classes - 1,); nan for a label that is in neither array.

    Raises
    ------
    FmsegError
        If the shapes differ, the arrays are not integers or a value lies outside the classes.
    """
    if prediction.shape != truth.shape or prediction.dtype.kind not in "bui" or truth.dtype.kind not in "bui":
        raise FmsegError(
            f"Dice compares two integer arrays of one shape, not {prediction.dtype} of {prediction.shape} "
            f"and {truth.dtype} of {truth.shape}."
        )
    for array in (prediction, truth):
        if array.size and (array.min() < 0 or array.max() >= n_classes):
            raise FmsegError(f"Labels from {array.min()} to {array.max()} do not fit {n_classes} classes.")
    predicted, true, both = _count(prediction, truth, n_classes)[1:].T
    total = predicted + true
    dice: npt.NDArray[np.float64] = np.divide(2.0 * both, total, out=np.full(n_classes - 1, np.nan), where=total > 0)
    return dice


def _same_grid(prediction: LabelMap, truth: LabelMap) -> None:
    if prediction.geometry.matches(truth.geometry, atol_mm=0.01):
        return
    told = [
        f"{m.geometry.shape} voxels of {np.round(m.geometry.spacing, 4).tolist()} mm "
        f"at {np.round(m.geometry.origin, 3).tolist()}, {m.geometry.orientation}"
        for m in (prediction, truth)
    ]
    raise GeometryMismatch(
        f"The prediction has {told[0]}; the truth has {told[1]} (z, y, x). Scores need one grid: "
        "resample one of them onto the other with nearest neighbours (napari_fmseg.core.resampling.resample, order=0), "
        "or segment the image that the truth was drawn on."
    )


def _dense(prediction: npt.NDArray[Any], truth: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], ...]:
    """Return the ids (0 first) and both maps with each id replaced by its place in that list, copied only if needed."""
    arrays = [a.view(np.uint8) if a.dtype.kind == "b" else a for a in (prediction, truth)]
    if all(int(a.min()) >= 0 and int(a.max()) < 256 for a in arrays):
        top = max(int(a.max()) for a in arrays)
        return np.arange(top + 1), arrays[0].astype(np.uint8, copy=False), arrays[1].astype(np.uint8, copy=False)
    found = np.union1d(np.unique(arrays[0]), np.unique(arrays[1]))
    ids = np.concatenate([[0], found[found != 0]])
    order = np.argsort(ids)
    small = np.min_scalar_type(len(ids))
    codes = [order[np.searchsorted(ids, a, sorter=order)].astype(small) for a in arrays]
    return ids, codes[0], codes[1]


def _count(prediction: npt.NDArray[Any], truth: npt.NDArray[Any], n: int) -> Sizes:
    """Return (n, 3): voxels of each label in the prediction, in the truth and in both; one bincount per slab."""
    flat, true_flat = prediction.reshape(-1), truth.reshape(-1)
    slabs = [slice(start, start + _SLAB) for start in range(0, flat.size, _SLAB)]
    if n > _MANY:
        counts = np.zeros((3, n), np.int64)
        for slab in slabs:
            ours, theirs = flat[slab], true_flat[slab]
            counts += [np.bincount(part, minlength=n) for part in (ours, theirs, ours[ours == theirs])]
        return counts.T
    wide = np.min_scalar_type(n * n)
    pairs = np.zeros(n * n, np.int64)
    for slab in slabs:
        pair = flat[slab].astype(wide)
        pair *= wide.type(n)
        pair += true_flat[slab].astype(wide, copy=False)
        pairs += np.bincount(pair, minlength=n * n)
    table = pairs.reshape(n, n)
    return np.stack([table.sum(1), table.sum(0), np.diag(table)], axis=1)


def _names(predicted: Mapping[int, str], true: Mapping[int, str], occurring: set[int]) -> dict[int, str]:
    """Return the name of every label that occurs or has a name; the truth's name where only the case differs."""
    for value in sorted({*predicted} & {*true}):
        if predicted[value].casefold() != true[value].casefold():
            raise FmsegError(
                f"Label {value} is {predicted[value]!r} in the prediction and {true[value]!r} in the truth. "
                "Expected one meaning for each number: relabel one of them, or compare by number alone "
                "(empty names; on the command line --by-number)."
            )
    names: dict[int, str] = {}
    for value in sorted((occurring | {*predicted} | {*true}) - {0}):
        name = true.get(value) or predicted.get(value) or str(value)
        names[value] = name if name not in names.values() else f"{name} ({value})"
    return names


def _boxes(codes: npt.NDArray[Any], true_codes: npt.NDArray[Any], n: int) -> list[Box | None]:
    """Return for every code the box that holds it in both maps, None where it does not occur."""
    from scipy import ndimage

    found = zip(ndimage.find_objects(codes, n - 1), ndimage.find_objects(true_codes, n - 1), strict=True)
    return [None, *(_union(a, b) for a, b in found)]


def _union(a: Box | None, b: Box | None) -> Box | None:
    if a is None or b is None:
        return a or b
    z, y, x = (slice(min(i.start, j.start), max(i.stop, j.stop)) for i, j in zip(a, b, strict=True))
    return (z, y, x)


def _dice(sizes: Sizes) -> float:
    predicted, true, both = sizes.tolist()
    return 2 * both / (predicted + true) if predicted + true else float("nan")


def _volumes(sizes: Sizes, voxel_ml: float) -> dict[str, float]:
    predicted, true, both = sizes.tolist()
    return {
        "volume_ml": predicted * voxel_ml,
        "truth_ml": true * voxel_ml,
        "false_positive_ml": (predicted - both) * voxel_ml,
        "false_negative_ml": (true - both) * voxel_ml,
    }


def _no_surface(sizes: Sizes) -> dict[str, float]:
    distance, share = (float("inf"), 0.0) if sizes[:2].any() else (float("nan"), float("nan"))
    return {"hd95_mm": distance, "assd_mm": distance, "nsd": share}


def _surfaces(
    mask: npt.NDArray[np.bool_], true_mask: npt.NDArray[np.bool_], truth: LabelMap, tolerance_mm: float
) -> dict[str, float]:  # fmt: skip
    """Return distances between the surfaces of two masks (z, y, x), neither of them empty."""
    edge, true_edge = _edge(mask), _edge(true_mask)
    axes = truth.geometry.affine[:3, :3]
    there = _distances(edge, true_edge, axes)
    back = _distances(true_edge, edge, axes)
    together = np.concatenate([there, back])
    return {
        "hd95_mm": float(max(np.percentile(there, 95), np.percentile(back, 95))),
        "assd_mm": float(together.mean()),
        "nsd": float((together <= tolerance_mm).mean()),
    }


def _edge(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return voxels of the mask with a face neighbour outside it; outside the box is outside the mask."""
    inside = np.zeros_like(mask)
    inside[1:-1, 1:-1, 1:-1] = (
        mask[2:, 1:-1, 1:-1] & mask[:-2, 1:-1, 1:-1] & mask[1:-1, 2:, 1:-1]
        & mask[1:-1, :-2, 1:-1] & mask[1:-1, 1:-1, 2:] & mask[1:-1, 1:-1, :-2]
    )  # fmt: skip
    return mask & ~inside


def _distances(
    edge: npt.NDArray[np.bool_], other: npt.NDArray[np.bool_], axes: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:  # fmt: skip
    """Return the distance in mm of every voxel of `edge` to the nearest of `other`; nothing is asked where they
    coincide.
    """
    from scipy.spatial import cKDTree

    apart = np.argwhere(edge & ~other)
    distances = np.zeros(int(edge.sum()))
    if len(apart):
        tree = cKDTree(np.argwhere(other) @ axes.T, balanced_tree=False, compact_nodes=False)
        distances[: len(apart)] = tree.query(apart @ axes.T, workers=-1)[0]
    return distances

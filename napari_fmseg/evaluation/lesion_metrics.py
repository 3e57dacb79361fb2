"""How well lesions are found, lesion by lesion: what a Dice over all voxels does not show."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from napari_fmseg.core.components import components
from napari_fmseg.core.errors import FmsegError
from napari_fmseg.core.volume import LabelMap
from napari_fmseg.evaluation.metrics import labels_by_name

__all__ = ["score_lesions"]


def score_lesions(
    prediction: LabelMap, truth: LabelMap, *, min_ml: float = 0.0, overlap: float = 0.0
) -> dict[str, dict[str, float]]:
    """Compare the lesions of a segmentation with the true ones, label by label.

    A lesion is a connected part of a label (26 neighbours). A true lesion is found if the prediction of its label
    covers more than the share `overlap` of it, by default a single voxel. A predicted lesion is false if it shares no
    voxel with a true one.

    Parameters
    ----------
    prediction, truth
        Labels (z, y, x) on the same grid.
    min_ml
        Lesions below so many millilitres count neither as true nor as false; they may still find others, and be found.
    overlap
        Share of a true lesion, 0 to below 1, that must be exceeded.

    Returns
    -------
    dict
        For every label's name (its number where nobody named it):

        - ``dice``: over all voxels, as `napari_fmseg.evaluation.metrics.score`.
        - ``true_lesions``, ``predicted_lesions``: how many there are.
        - ``found``, ``missed``: how many of the true ones.
        - ``false_lesions``: how many predicted ones touch no true one.
        - ``sensitivity``: found of true, 0 to 1; nan where there is no true lesion.
        - ``precision``: share of the predicted lesions that are not false; nan where nothing was predicted.
        - ``false_positive_ml``: volume of the false lesions.
        - ``false_negative_ml``: volume of the missed ones.

        In an image without lesions a silent prediction has nan for dice, sensitivity and precision, so that
        ``numpy.nanmean`` leaves it out, and 0 ml; any predicted lesion there has dice 0 and counts in
        ``false_positive_ml``.

    Raises
    ------
    GeometryMismatch
        If the grids differ.
    FmsegError
        If the maps give one id two names, or `min_ml` or `overlap` make no sense.

    References
    ----------
    Gatidis et al., A whole-body FDG-PET/CT dataset with manually annotated tumor lesions, Sci Data 2022 (volumes of
    false lesions beside Dice).
    """
    if not min_ml >= 0 or not 0 <= overlap < 1:
        raise FmsegError(f"Expected min_ml of 0 or more and an overlap of 0 to below 1, not {min_ml} and {overlap}.")
    found = {}
    for name, value in labels_by_name(prediction, truth).items():
        mask, true = (np.asarray(labels.data == value) for labels in (prediction, truth))
        found[name] = _compare(mask, true, truth.geometry.voxel_ml, min_ml, overlap)
    return found


def _compare(
    mask: npt.NDArray[np.bool_], true: npt.NDArray[np.bool_], voxel_ml: float, min_ml: float, overlap: float
) -> dict[str, float]:  # fmt: skip
    """Return counts and volumes for one label."""
    size, touched = _count_overlap(mask, true)
    true_size, covered = _count_overlap(true, mask)
    counts, true_counts = (n * voxel_ml >= min_ml * (1 - 1e-9) for n in (size, true_size))
    false = counts & (touched == 0)
    hit = covered > overlap * true_size
    missed = true_counts & ~hit
    n, n_true = int(counts.sum()), int(true_counts.sum())
    n_found = n_true - int(missed.sum())
    total = int(size.sum() + true_size.sum())
    return {
        "dice": 2 * int(touched.sum()) / total if total else float("nan"),
        "true_lesions": n_true,
        "predicted_lesions": n,
        "found": n_found,
        "missed": int(missed.sum()),
        "false_lesions": int(false.sum()),
        "sensitivity": n_found / n_true if n_true else float("nan"),
        "precision": 1 - int(false.sum()) / n if n else float("nan"),
        "false_positive_ml": float(size[false].sum() * voxel_ml),
        "false_negative_ml": float(true_size[missed].sum() * voxel_ml),
    }


def _count_overlap(
    mask: npt.NDArray[np.bool_], other: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:  # fmt: skip
    """Return voxels of every part of `mask`, and how many of them lie in `other`."""
    parts = components(mask.view(np.uint8))
    size = np.bincount(parts[mask], minlength=1)
    return size[1:], np.bincount(parts[mask & other], minlength=len(size))[1:]

"""Lesions are counted as a slow comparison of scipy's parts counts them; what is empty has a stated result."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import ndimage

from napari_fmseg.core.errors import FmsegError, GeometryMismatch
from napari_fmseg.core.volume import Geometry, LabelMap
from napari_fmseg.evaluation.lesion_metrics import score_lesions
from napari_fmseg.evaluation.metrics import score

SPACING = (4.0, 3.0, 2.5)
ML = 0.03


def blobs(seed: int, shift: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(rng.normal(size=(16, 18, 20)), 1.1)
    other = ndimage.gaussian_filter(np.random.default_rng(99).normal(size=noise.shape), 1.1)
    return ((1 - shift) * noise + shift * other > 0.2).astype(np.uint8)


def label_map(data: np.ndarray, names: dict[int, str] | None = None) -> LabelMap:
    return LabelMap(data, Geometry.from_spacing(data.shape, SPACING), {}, names or {})


def slowly(mask: np.ndarray, true: np.ndarray, min_ml: float, overlap: float) -> dict[str, float]:
    """Every part against the whole other mask."""
    parts, n = ndimage.label(mask, np.ones((3, 3, 3)))
    true_parts, n_true = ndimage.label(true, np.ones((3, 3, 3)))
    false = [p for p in (parts == i for i in range(1, n + 1)) if p.sum() * ML >= min_ml - 1e-9]
    n = len(false)
    false = [p for p in false if not (p & true).any()]
    lesions = [p for p in (true_parts == i for i in range(1, n_true + 1)) if p.sum() * ML >= min_ml - 1e-9]
    missed = [p for p in lesions if (p & mask).sum() <= overlap * p.sum()]
    return {
        "true_lesions": len(lesions), "predicted_lesions": n, "found": len(lesions) - len(missed),
        "missed": len(missed), "false_lesions": len(false), "sensitivity": 1 - len(missed) / len(lesions),
        "precision": 1 - len(false) / n, "false_positive_ml": sum(p.sum() for p in false) * ML,
        "false_negative_ml": sum(p.sum() for p in missed) * ML,
    }  # fmt: skip


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize(("min_ml", "overlap"), [(0.0, 0.0), (0.05, 0.0), (0.0, 0.5)])
def test_counts_and_volumes_equal_a_slow_comparison(seed: int, min_ml: float, overlap: float) -> None:
    truth, prediction = blobs(seed), blobs(seed, 0.5)
    row = score_lesions(label_map(prediction), label_map(truth), min_ml=min_ml, overlap=overlap)["1"]
    expected = slowly(prediction > 0, truth > 0, min_ml, overlap)
    assert expected["missed"] > 0
    assert expected["false_lesions"] > 0 or min_ml > 0
    assert {k: row[k] for k in expected} == pytest.approx(expected)
    assert row["dice"] == pytest.approx(score(label_map(prediction), label_map(truth))["1"]["dice"])


def test_what_is_empty_has_a_stated_result() -> None:
    nothing, some = np.zeros((16, 18, 20), np.uint8), blobs(1)
    neither = score_lesions(label_map(nothing, {1: "tumour"}), label_map(nothing))["tumour"]
    assert all(math.isnan(neither[k]) for k in ("dice", "sensitivity", "precision"))
    assert neither["false_positive_ml"] == neither["false_negative_ml"] == 0
    invented = score_lesions(label_map(some), label_map(nothing))["1"]
    assert (invented["dice"], invented["precision"]) == (0, 0)
    assert math.isnan(invented["sensitivity"])
    assert invented["false_positive_ml"] == pytest.approx(some.sum() * ML)
    silent = score_lesions(label_map(nothing), label_map(some))["1"]
    assert (silent["dice"], silent["sensitivity"], silent["false_positive_ml"]) == (0, 0, 0)
    assert math.isnan(silent["precision"])
    assert silent["false_negative_ml"] == pytest.approx(some.sum() * ML)


def test_labels_are_compared_each_for_itself() -> None:
    data = blobs(1)
    row = score_lesions(label_map(data * 2, {2: "b"}), label_map(data, {1: "a"}))
    assert (row["a"]["found"], row["b"]["found"]) == (0, 0)
    assert row["a"]["missed"] == row["b"]["false_lesions"] > 0


def test_other_grids_and_senseless_wishes_are_refused() -> None:
    data = blobs(1)
    with pytest.raises(GeometryMismatch):
        score_lesions(label_map(data), LabelMap(data, Geometry.from_spacing(data.shape)))
    with pytest.raises(FmsegError, match="overlap"):
        score_lesions(label_map(data), label_map(data), overlap=1)

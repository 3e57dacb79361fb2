import json
import math
import os
import warnings
from pathlib import Path

import numpy as np
import pytest

from napari_fmseg.core.errors import FmsegError, GeometryMismatch
from napari_fmseg.core.volume import Geometry, LabelMap
from napari_fmseg.evaluation.metrics import dice_per_label, score

SHAPE = (14, 16, 18)
SPACING = (3.0, 0.8, 1.1)


def ball(centre, radius, shape=SHAPE, spacing=SPACING):
    """Voxels within `radius` mm of the voxel `centre`."""
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1)
    return np.linalg.norm((grid - np.array(centre)) * spacing, axis=-1) <= radius


def label_map(data, geometry=None, **kwargs):
    data = np.asarray(data)
    return LabelMap(data, geometry or Geometry.from_spacing(data.shape, SPACING), **kwargs)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (3.0, 0.8, 1.1), (0.5, 2.5, 0.7)])
@pytest.mark.parametrize("moved", [(0, 0, 0), (1, 0, 0), (2, 3, -2)])
def test_distances_and_dice_equal_monai(spacing, moved):
    torch = pytest.importorskip("torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        metrics = pytest.importorskip("monai.metrics")
    centre = (6, 7, 8)
    truth = ball(centre, 5.0, spacing=spacing)
    prediction = ball(np.add(centre, moved), 4.0, spacing=spacing)
    prediction[0, 0, 0] = True  # an outlier, on the border of the volume
    geometry = Geometry.from_spacing(SHAPE, spacing)
    ours = score(label_map(prediction, geometry), label_map(truth, geometry), tolerance_mm=1.5)["1"]
    pair = torch.as_tensor(prediction)[None, None].float(), torch.as_tensor(truth)[None, None].float()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = {"include_background": True, "spacing": spacing}
        expected = {
            "dice": metrics.compute_dice(*pair),
            "hd95_mm": metrics.compute_hausdorff_distance(*pair, percentile=95, **options),
            "assd_mm": metrics.compute_average_surface_distance(*pair, symmetric=True, **options),
            "nsd": metrics.compute_surface_dice(*pair, class_thresholds=[1.5], **options),
        }
    for name, value in expected.items():
        assert ours[name] == pytest.approx(float(value), abs=1e-5), name


def test_identical_maps_score_full_marks():
    data = ball((6, 7, 8), 5).astype(np.uint8)
    row = score(label_map(data, names={1: "liver"}), label_map(data))["liver"]
    assert (row["dice"], row["hd95_mm"], row["assd_mm"], row["nsd"]) == (1, 0, 0, 1)
    assert row["volume_ml"] == row["truth_ml"] == pytest.approx(data.sum() * 3 * 0.8 * 1.1 / 1000)
    assert row["false_positive_ml"] == row["false_negative_ml"] == 0


def test_volumes_that_are_only_in_one_map_are_told_in_ml():
    truth, prediction = np.zeros((2, *SHAPE), np.uint8)
    truth[2:6, 2:6, 2:6] = 1
    prediction[3:6, 2:6, 2:8] = 1
    row = score(label_map(prediction), label_map(truth))["1"]
    voxel = 3 * 0.8 * 1.1 / 1000
    assert row["false_negative_ml"] == pytest.approx(16 * voxel)
    assert row["false_positive_ml"] == pytest.approx(24 * voxel)


def test_a_label_in_neither_map_is_nan_and_one_in_a_single_map_is_zero():
    truth, prediction = np.zeros((2, *SHAPE), np.uint8)
    truth[3:5, 3:5, 3:5] = 1
    prediction[3:5, 3:5, 3:5] = 2
    rows = score(label_map(prediction), label_map(truth, names={1: "liver", 2: "tumour", 3: "cyst"}))
    for name in ("liver", "tumour"):
        assert rows[name]["dice"] == rows[name]["nsd"] == 0
        assert rows[name]["hd95_mm"] == rows[name]["assd_mm"] == math.inf
    assert all(math.isnan(rows["cyst"][k]) for k in ("dice", "hd95_mm", "assd_mm", "nsd"))
    assert rows["cyst"]["volume_ml"] == 0


def test_two_empty_maps_without_names_have_no_rows():
    empty = label_map(np.zeros(SHAPE, np.int16))
    assert score(empty, empty) == {}


@pytest.mark.parametrize(
    ("dtype", "ids"),
    [(np.uint8, (1, 5)), (np.int16, (7, 300)), (np.int32, (-3, 70000)), (np.uint64, (2, 2**40)), (np.uint16, (1, 9))],
)
def test_ids_need_not_be_consecutive(dtype, ids):
    truth, prediction = np.zeros((2, *SHAPE), dtype)
    for k, value in enumerate(ids):
        truth[2 + 5 * k : 6 + 5 * k, 4:9, 4:9] = value
        prediction[2 + 5 * k : 6 + 5 * k, 4:9, 5:10] = value
    rows = score(label_map(prediction), label_map(truth))
    assert sorted(rows) == sorted(str(v) for v in ids)
    assert [row["dice"] for row in rows.values()] == pytest.approx([0.8, 0.8])
    assert [row["hd95_mm"] for row in rows.values()] == pytest.approx([1.1, 1.1])


def test_thousands_of_labels_are_counted_without_a_table_of_pairs():
    truth = np.arange(2048, dtype=np.int32).reshape(8, 16, 16)
    prediction = truth.copy()
    prediction[prediction == 2000] = 5
    rows = score(label_map(prediction), label_map(truth))
    assert len(rows) == 2047
    assert rows["5"]["dice"] == pytest.approx(2 / 3)
    assert rows["2000"]["dice"] == 0


def test_distances_on_a_sheared_grid_are_between_true_places():
    affine = np.eye(4)
    affine[:3, :3] = [[2.0, 0, 0], [0, 1.0, 0.5], [0, 0, 1.0]]  # x runs half along y
    geometry = Geometry(SHAPE, affine)
    truth, prediction = np.zeros((2, *SHAPE), np.uint8)
    truth[5, 5, 5] = prediction[5, 5, 7] = 1
    row = score(label_map(prediction, geometry), label_map(truth, geometry))["1"]
    assert row["hd95_mm"] == pytest.approx(2 * math.hypot(1, 0.5))


def test_an_oblique_grid_scores_as_the_straight_one():
    angle = 0.4
    turn = np.array([[1, 0, 0], [0, math.cos(angle), -math.sin(angle)], [0, math.sin(angle), math.cos(angle)]])
    oblique = Geometry.from_spacing(SHAPE, SPACING, (4, 5, 6), turn)
    straight = Geometry.from_spacing(SHAPE, SPACING)
    a, b = ball((6, 7, 8), 5), ball((7, 8, 9), 6)
    turned = score(label_map(a, oblique), label_map(b, oblique))["1"]
    assert turned == pytest.approx(score(label_map(a, straight), label_map(b, straight))["1"])


def test_different_grids_are_refused_with_what_to_do():
    data = np.zeros(SHAPE, np.uint8)
    moved = Geometry.from_spacing(SHAPE, SPACING, (0, 0, 5))
    with pytest.raises(GeometryMismatch, match=r"resample one of them"):
        score(label_map(data), label_map(data, moved))
    with pytest.raises(GeometryMismatch, match=r"\(14, 16, 17\)"):
        score(label_map(data), label_map(data[..., :-1]))


def test_one_number_with_two_names_is_refused():
    data = np.zeros(SHAPE, np.uint8)
    with pytest.raises(FmsegError, match="Label 1 is 'spleen' in the prediction and 'liver' in the truth"):
        score(label_map(data, names={1: "spleen"}), label_map(data, names={1: "liver"}))
    rows = score(label_map(data, names={1: "LIVER"}), label_map(data, names={1: "liver", 2: "liver"}))
    assert list(rows) == ["liver", "liver (2)"]


@pytest.mark.parametrize("tolerance", [-1.0, math.nan])
def test_a_tolerance_that_is_no_distance_is_refused(tolerance):
    data = label_map(np.zeros(SHAPE, np.uint8))
    with pytest.raises(FmsegError, match="Expected a distance"):
        score(data, data, tolerance_mm=tolerance)


def test_dice_per_label_equals_a_loop():
    rng = np.random.default_rng(1)
    prediction, truth = rng.integers(0, 5, (2, 40, 50, 60)).astype(np.uint8)
    expected = [
        2 * ((prediction == k) & (truth == k)).sum() / ((prediction == k).sum() + (truth == k).sum())
        for k in range(1, 5)
    ]
    assert dice_per_label(prediction, truth, 5) == pytest.approx(expected)
    assert np.isnan(dice_per_label(prediction, truth, 7)[4:]).all()
    assert dice_per_label(prediction.astype(np.int64), truth > 9, 5) == pytest.approx([0, 0, 0, 0])


def test_dice_per_label_refuses_what_it_cannot_compare():
    data = np.zeros((4, 4, 4), np.uint8)
    with pytest.raises(FmsegError, match="one shape"):
        dice_per_label(data, data[1:], 2)
    with pytest.raises(FmsegError, match="integer"):
        dice_per_label(data.astype(float), data, 2)
    with pytest.raises(FmsegError, match="do not fit 2 classes"):
        dice_per_label(data, data + 2, 2)


@pytest.mark.real
def test_scores_are_those_that_misfm_published():
    shared = Path(os.environ.get("FMSEG_SHARED", Path(__file__).parents[2].parent / "shared")) / "golden"
    if not shared.is_dir():
        pytest.skip(f"the golden vectors are not beside the project ({shared})")
    with np.load(shared / "misfm_metrics.npz") as data:
        values, mine, true = json.loads(str(data["about"]))["values"], data["segmentation"], data["reference"]
    same = score(*(label_map(m, Geometry.from_spacing(mine.shape, (3.0, 1.0, 1.0))) for m in (mine, true)))["1"]
    assert same["assd_mm"] == pytest.approx(values["spacing_3_1_1"]["assd"], rel=1e-6)
    assert same["dice"] == pytest.approx(values["spacing_3_1_1"]["dice"], abs=1e-6)

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from napari_fmseg.core.errors import FmsegError
from napari_fmseg.datasets.phantom import phantom_cases, phantom_ct
from napari_fmseg.datasets.phantom.dataset import write_phantom_dataset

COARSE = (6.0, 6.0, 6.0)
LIVER, KIDNEYS, SPLEEN, PANCREAS, TUMOUR = range(1, 6)
# ml in adults, generously: from a small healthy organ to an enlarged one
USUAL_ML = {LIVER: (800, 2700), KIDNEYS: (150, 520), SPLEEN: (50, 450), PANCREAS: (25, 160), TUMOUR: (0.3, 300)}


def centre_mm(labels, value):
    return labels.geometry.place(np.argwhere(labels.data == value)).mean(0)


def test_same_seed_gives_the_same_volume_and_another_seed_another():
    first, again, other = (phantom_ct(seed, spacing=COARSE) for seed in (4, 4, 5))
    np.testing.assert_array_equal(first[0].data, again[0].data)
    np.testing.assert_array_equal(first[1].data, again[1].data)
    assert first[0].geometry == again[0].geometry == first[1].geometry
    assert (first[1].data != other[1].data).mean() > 0.01


def test_default_is_an_int16_ct_in_the_radiologists_orientation():
    volume, labels = phantom_ct(0)
    assert volume.data.dtype == np.int16
    assert labels.data.dtype == np.uint8
    assert volume.geometry.orientation == "SPL"
    assert volume.geometry.shape == (92, 128, 128)
    assert labels.names == {1: "liver", 2: "kidneys", 3: "spleen", 4: "pancreas", 5: "tumour"}
    assert set(labels.colors) == set(labels.names)


@pytest.mark.parametrize("seed", range(6))
def test_organs_have_the_size_and_the_side_of_a_patients(seed):
    _, labels = phantom_ct(seed, spacing=(4.0, 4.0, 4.0), difficulty=("easy", "normal", "hard")[seed % 3])
    ml = labels.volumes_ml()
    for value, (low, high) in USUAL_ML.items():
        assert low < ml[value] < high, labels.names[value]
    liver, spleen, kidneys = (centre_mm(labels, v) for v in (LIVER, SPLEEN, KIDNEYS))
    assert liver[2] < -20 < 40 < spleen[2]  # x runs to the left of the patient
    assert abs(kidneys[2]) < 20
    assert kidneys[1] > liver[1] + 15  # y runs to the back
    assert liver[0] > kidneys[0]  # z runs to the head


@pytest.mark.parametrize(
    ("difficulty", "seed", "expected"),
    [
        ("easy", 0, {LIVER: (85, 130), KIDNEYS: (140, 225), SPLEEN: (95, 145), PANCREAS: (55, 115)}),
        ("hard", 2, {LIVER: (20, 75), KIDNEYS: (5, 45), SPLEEN: (30, 60), PANCREAS: (5, 55)}),  # no contrast medium
    ],
)
def test_labels_lie_on_the_density_of_their_organ(difficulty, seed, expected):
    volume, labels = phantom_ct(seed, difficulty=difficulty)
    for value, (low, high) in expected.items():
        assert low < volume.data[labels.data == value].mean() < high, labels.names[value]
    surroundings = volume.data[labels.data == 0]
    assert (surroundings < -900).mean() > 0.3  # air
    assert ((surroundings > -130) & (surroundings < -70)).mean() > 0.05  # fat
    assert (surroundings > 250).mean() > 0.003  # bone


def test_tumours_are_darker_than_the_liver_around_them_after_contrast_medium():
    for seed in (0, 3, 6):
        volume, labels = phantom_ct(seed, difficulty="easy")
        assert volume.data[labels.data == TUMOUR].mean() < volume.data[labels.data == LIVER].mean() - 15


def test_a_patient_keeps_its_volumes_and_its_place_at_every_spacing():
    grids = [(2.5, 2.5, 2.5), (3.0, 3.0, 3.0), (5.0, 2.5, 2.5)]
    found = [phantom_ct(11, spacing=s)[1] for s in grids]
    for value, limit in {LIVER: 0.02, KIDNEYS: 0.04, SPLEEN: 0.06, PANCREAS: 0.12}.items():
        ml = [labels.volumes_ml()[value] for labels in found]
        assert max(ml) / min(ml) - 1 < limit, ml
        centres = np.array([centre_mm(labels, value) for labels in found])
        assert np.ptp(centres, axis=0).max() < 1.5


def test_voxels_on_a_surface_hold_a_part_of_both_sides():
    volume, labels = phantom_ct(0, difficulty="easy", spacing=(3.0, 3.0, 3.0))
    kidney = labels.data == KIDNEYS
    inner = kidney.copy()
    for axis in range(3):
        inner &= np.roll(kidney, 1, axis) & np.roll(kidney, -1, axis)
    rim = volume.data[kidney & ~inner]
    # between the fat around and the cortex, and neither: far more than the noise of 9 HU could make
    assert ((rim > 0) & (rim < 120)).mean() > 0.15
    assert rim.mean() < volume.data[inner].mean() - 15


def test_noise_is_correlated_and_grows_with_difficulty():
    spread, correlation = [], []
    for difficulty in ("easy", "hard"):
        volume, labels = phantom_ct(2, difficulty=difficulty)
        # differences along y cancel the anatomy within the liver's smooth inside
        inner = labels.data == LIVER
        for axis in range(3):
            for step in (-2, -1, 1, 2):
                inner &= np.roll(labels.data == LIVER, step, axis)
        data = volume.data.astype(float)
        spread.append(data[inner].std())
        pairs = inner & np.roll(inner, 1, 2)
        correlation.append(np.corrcoef(data[pairs], np.roll(data, 1, 2)[pairs])[0, 1])
    assert spread[1] > 1.3 * spread[0]
    assert np.abs(correlation).max() < 0.95


def test_cases_come_in_several_spacings_and_the_same_ones_again(monkeypatch):
    monkeypatch.setattr("napari_fmseg.datasets.phantom.SPACINGS", ((8.0, 8.0, 8.0), (12.0, 8.0, 8.0)))
    first, again = (list(phantom_cases(6, 1)) for _ in range(2))
    assert {volume.geometry.spacing[0] for volume, _ in first} == {8.0, 12.0}
    assert len({volume.meta["phantom"] for volume, _ in first}) == 6
    for (volume, labels), (same, same_labels) in zip(first, again, strict=True):
        np.testing.assert_array_equal(volume.data, same.data)
        np.testing.assert_array_equal(labels.data, same_labels.data)


def test_small_shape_looks_at_the_middle_of_the_same_patient():
    whole, _ = phantom_ct(3, spacing=COARSE)
    part, labels = phantom_ct(3, spacing=COARSE, shape=(20, 32, 32))
    assert part.data.shape == (20, 32, 32)
    offset = (np.array(part.geometry.origin) - np.array(whole.geometry.origin)).tolist()
    box = tuple(slice(round(o / s), round(o / s) + n)
                for o, s, n in zip(offset, COARSE, part.data.shape, strict=True))  # fmt: skip
    np.testing.assert_array_equal(labels.data, phantom_ct(3, spacing=COARSE)[1].data[box])


@pytest.mark.parametrize("wrong", [{"difficulty": "impossible"}, {"spacing": (0.0, 1.0, 1.0)},
                                   {"spacing": (float("nan"), 1.0, 1.0)}])  # fmt: skip
def test_a_wrong_request_is_refused_with_what_was_expected(wrong):
    with pytest.raises(FmsegError, match=r"Choose one of|positive numbers"):
        phantom_ct(0, **wrong)


def test_dataset_has_the_nnunet_layout_and_opens_in_nibabel(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("napari_fmseg.datasets.phantom.SPACINGS", ((8.0, 8.0, 8.0),))
    folder = write_phantom_dataset(tmp_path / "set", 2, 1, seed=5)
    facts = json.loads((folder / "dataset.json").read_text())
    assert facts["labels"] == {"background": 0, "liver": 1, "kidneys": 2, "spleen": 3, "pancreas": 4, "tumour": 5}
    assert [len(facts[key]) for key in ("training", "validation")] == [2, 1]
    assert facts["numTraining"] == len(list((folder / "imagesTr").iterdir())) == 3
    for entry in (*facts["training"], *facts["validation"]):
        image, truth = nib.load(folder / entry["image"]), nib.load(folder / entry["label"])
        assert entry["image"].endswith("_0000.nii.gz")
        np.testing.assert_allclose(image.affine, truth.affine)
        assert set(np.unique(truth.dataobj)) <= set(range(6))
        assert nib.aff2axcodes(image.affine) == ("L", "P", "S")

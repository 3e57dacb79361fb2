"""Which files belong to an image, and what a changed one, another model or another option means for its result."""

from __future__ import annotations

import dataclasses
import os

import numpy as np
import pytest

from napari_fmseg.core.volume import Geometry, Volume
from napari_fmseg.io import write_volume
from napari_fmseg.models.card import ModelCard, NetSpec
from napari_fmseg.pipelines import SegmentOptions
from napari_fmseg.pipelines.folders.finished import hash_image, hash_model, hash_options, stamp_image

CARD = ModelCard("one", "One", "single", {"net": NetSpec("unet3d")}, {1: "liver"}, sha256="ab", settings={"a": 1})


def volume(seed=0):
    data = np.random.default_rng(seed).integers(0, 99, (4, 5, 6)).astype(np.int16)
    return Volume(data, Geometry.from_spacing(data.shape, (1, 1, 1)))


@pytest.mark.parametrize("suffix", [".nii", ".nrrd", ".nhdr", ".mhd"])
def test_a_change_of_the_voxels_is_seen_where_they_lie_in_a_second_file(tmp_path, suffix):
    image = write_volume(volume(), tmp_path / f"a{suffix}")
    stamp, content = stamp_image([image]), hash_image([image])
    data = next((p for p in tmp_path.iterdir() if p != image), image)
    data.write_bytes(data.read_bytes()[:-1] + b"\x07")
    assert stamp_image([image]) != stamp
    assert hash_image([image]) != content


def test_both_halves_of_a_pair_belong_to_the_image(tmp_path):
    (tmp_path / "a.hdr").write_bytes(b"header")
    (tmp_path / "a.img").write_bytes(b"voxels")
    before = hash_image([tmp_path / "a.hdr"])
    (tmp_path / "a.img").write_bytes(b"others")
    assert hash_image([tmp_path / "a.hdr"]) != before


def test_another_time_is_another_stamp_and_the_same_content(tmp_path):
    image = write_volume(volume(), tmp_path / "a.nii")
    stamp, content = stamp_image([image]), hash_image([image])
    os.utime(image, ns=(5, 5))
    assert stamp_image([image]) != stamp
    assert hash_image([image]) == content


def test_every_slice_of_a_dicom_folder_counts_and_so_does_the_order_of_channels(pet, tmp_path):
    folder = pet(tmp_path / "pet")
    other = write_volume(volume(), tmp_path / "a.nii")
    before = hash_image([folder])
    assert hash_image([folder, other]) != hash_image([other, folder])
    (folder / "IM1").unlink()
    assert hash_image([folder]) != before


def test_a_dicom_file_among_others_is_known_by_its_folder_only(pet, tmp_path):
    folder = pet(tmp_path / "pet")
    assert hash_image([folder / "IM0"]) == ""
    stamp = stamp_image([folder / "IM0"])
    (folder / "IM2").unlink()
    assert stamp_image([folder / "IM0"]) != stamp


def test_what_changes_labels_changes_the_hash_of_a_model_and_its_title_does_not(tmp_path):
    same = dataclasses.replace(CARD, title="Another", scores={"labels": {"liver": 0.5}}, folder=tmp_path)
    assert hash_model(same) == hash_model(CARD)
    for changes in ({"sha256": "cd"}, {"settings": {"a": 2}}, {"labels": {1: "spleen"}}, {"pipeline": "phased"}):
        assert hash_model(dataclasses.replace(CARD, **changes)) != hash_model(CARD)


def test_every_option_counts_but_those_that_leave_the_labels_as_they_are():
    plain = hash_options(SegmentOptions())
    others = {"device": "cuda", "strict": True, "show_stages": False, "max_memory_gb": 3.0, "window_batch": 2}
    assert hash_options(SegmentOptions(**others)) == plain
    assert hash_options(SegmentOptions(keep_largest=True)) != plain
    assert hash_options(SegmentOptions(), suv="never") != plain
    assert hash_options(SegmentOptions(), series="1.2") != plain

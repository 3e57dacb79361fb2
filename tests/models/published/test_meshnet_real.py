"""The first published model itself: the files of the registry, and the masks of another implementation."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from napari_fmseg.core.events import drain
from napari_fmseg.io import read_labels, read_volume
from napari_fmseg.models.card import ModelCard
from napari_fmseg.models.published import find_published
from napari_fmseg.models.published.tfjs import convert_meshnet, read_tfjs
from napari_fmseg.models.weights import load_model
from napari_fmseg.pipelines import SegmentOptions, segment

SHARED = Path(os.environ.get("FMSEG_SHARED", Path(__file__).parents[3].parent / "shared"))
GOLDEN, HEAD = SHARED / "golden" / "meshnet", SHARED / "data" / "brain_fs"
ENTRY = find_published("meshnet-brain-mr")
# FreeSurfer's numbers of both hemispheres, in the order of the model's classes.
ASEG = ((2, 41), (3, 42), (4, 43), (5, 44), (7, 46), (8, 47), (10, 49), (11, 50), (12, 51), (13, 52), (14,), (15,),
        (16,), (17, 53), (18, 54), (26, 58), (28, 60))  # fmt: skip
# What an independent implementation found on the same head.
PUBLISHED = {"cerebral_white_matter": 0.886, "cerebral_cortex": 0.811, "thalamus": 0.870, "caudate": 0.867,
             "putamen": 0.851, "hippocampus": 0.803, "brain_stem": 0.919}  # fmt: skip


@pytest.fixture
def card(tmp_path: Path) -> ModelCard:
    if not GOLDEN.is_dir():
        pytest.skip(f"the published files are not beside the project ({GOLDEN})")
    for file in ENTRY.files:
        shutil.copy(GOLDEN / file.file, tmp_path / file.file)
    return convert_meshnet(tmp_path, ENTRY.as_card(), ENTRY.axes)


@pytest.mark.real
def test_size_and_hash_of_the_registry_are_those_of_the_files(card: ModelCard) -> None:
    for file in ENTRY.files:
        content = (GOLDEN / file.file).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (file.size, file.sha256)
    net = load_model(card, device="cpu").nets["net"]
    assert sum(p.numel() for p in net.parameters()) == 196_038
    assert card.nets["net"].kwargs["dilations"] == [1, 2, 4, 8, 16, 8, 4, 2, 1]


@pytest.mark.real
def test_the_turned_network_gives_what_the_published_layers_give_in_their_own_axes(card: ModelCard) -> None:
    _, tensors = read_tfjs(GOLDEN)
    x = torch.from_numpy(np.random.default_rng(0).random((1, 1, 20, 24, 22), np.float32))  # left, inferior, anterior
    names = list(dict.fromkeys(name.partition("/")[0] for name in tensors))
    y = x
    for name, dilation in zip(names, [*card.nets["net"].kwargs["dilations"], 1], strict=True):
        kernel = torch.from_numpy(tensors[f"{name}/kernel"]).permute(4, 3, 0, 1, 2)
        y = F.conv3d(y, kernel, torch.from_numpy(tensors[f"{name}/bias"]), padding="same", dilation=dilation)
        y = F.elu(y) if name != names[-1] else y
    net = load_model(card, device="cpu").nets["net"]
    ours = net(x.permute(0, 1, 3, 4, 2).flip(2, 3))  # superior, posterior, left
    torch.testing.assert_close(ours.flip(2, 3).permute(0, 1, 4, 2, 3), y, rtol=0, atol=1e-3)


@pytest.mark.real
@pytest.mark.slow
def test_a_head_is_segmented_as_by_another_implementation(card: ModelCard) -> None:
    truth = read_labels(HEAD / "labels" / "fs_001.nii.gz").data
    options = SegmentOptions(precision="float32")
    found = drain(segment(read_volume(HEAD / "images" / "fs_001.nii.gz"), load_model(card, device="cpu"), options)).data
    dice = {}
    for (label, name), numbers in zip(card.labels.items(), ASEG, strict=True):
        ours, theirs = found == label, np.isin(truth, numbers)
        dice[name] = 2 * (ours & theirs).sum() / (ours.sum() + theirs.sum())
    assert np.mean(list(dice.values())) == pytest.approx(0.768, abs=0.006)
    assert {name: dice[name] for name in PUBLISHED} == pytest.approx(PUBLISHED, abs=0.015)
    assert card.scores["labels"] == pytest.approx(dice, abs=0.002), "what the card says was measured so"

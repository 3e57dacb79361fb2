"""Real scans through models that are not for them are warned of; those of a model's own set are not."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from napari_fmseg.cli import main as cli_main
from napari_fmseg.core.errors import UnknownModel
from napari_fmseg.datasets.phantom.dataset import write_phantom_dataset
from napari_fmseg.io import read_volume
from napari_fmseg.io.channels import read_channels
from napari_fmseg.models.card import ModelCard
from napari_fmseg.models.fit import Fit, find_misfits, rank
from napari_fmseg.models.measures import measure_volume
from napari_fmseg.models.registry import find_card, list_models

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("FMSEG_SHARED", ROOT.parent / "shared")) / "data"

OWN = {
    "headneck-ct": "hn_ct",
    "hippocampus-mr": "hippocampus",
    "left-atrium-mr": "la_mr",
    "cardiac-mr": "acdc",
    "lesion-pet": "lbt_pet",
}
"""The set that each model learned from."""

WRONG = (
    # file, what it is, model, what the model is for
    ("torso_ct/images/ct_001.nii.gz", "CT of a torso", "lesion-pet", "PET"),
    ("torso_ct/images/ct_001.nii.gz", "CT of a torso", "headneck-ct", "CT of head and neck"),
    ("torso_ct/images/ct_001.nii.gz", "CT of a torso", "cardiac-mr", "MR of the heart"),
    ("torso_ct/images/ct_001.nii.gz", "CT of a torso", "fmsf-phantom-ct", "phantoms"),
    ("torso_ct/images/ct_002.nii.gz", "slab of a CT of a torso", "headneck-ct", "CT of head and neck"),
    ("ct_dicom/images/ct_003", "DICOM CT of an abdomen", "left-atrium-mr", "MR crop of the heart"),
    ("ct_dicom/images/ct_003", "DICOM CT of an abdomen", "headneck-ct", "CT of head and neck"),
    ("hn_ct/images/hn_201.nii.gz", "CT of head and neck", "hippocampus-mr", "MR crop of the head"),
    ("hn_ct/images/hn_201.nii.gz", "CT of head and neck", "efficient-phantom-ct", "phantoms"),
    ("hn_ct/images/hn_201.nii.gz", "CT of head and neck", "lesion-pet", "PET"),
    ("unlabelled/ct/ct_avm.nii.gz", "crop of a CT angiography of the head", "headneck-ct", "CT in HU"),
    ("unlabelled/ct/ct_pitch.nii.gz", "CT of a head in 8 bits", "headneck-ct", "CT in HU"),
    ("lbt_pet/images/{}", "PET of the whole body", "headneck-ct", "CT of head and neck"),
    ("lbt_pet/images/{}", "PET of the whole body", "left-atrium-mr", "MR crop of the heart"),
    ("lbt_pet/images/{}", "PET of the whole body", "cardiac-mr", "MR of the heart"),
    ("brain_fs/images/fs_001.nii.gz", "MR of a whole head", "hippocampus-mr", "MR crop of the head"),
    ("brain_fs/images/fs_001.nii.gz", "MR of a whole head", "cardiac-mr", "MR of the heart"),
    ("brain_nrrd/images/brain1.nrrd", "MR of a head", "cardiac-mr", "MR of the heart"),
    ("brain_nrrd/images/brain1.nrrd", "MR of a head", "headneck-ct", "CT of head and neck"),
    ("brain_nrrd/images/brain1.nrrd", "MR of a head", "lesion-pet", "PET"),
    ("brain_dicom/images/pgbm002_hippocrop", "DICOM MR crop of a hippocampus", "left-atrium-mr", "heart"),
    ("brain_dicom/images/pgbm002_hippocrop", "DICOM MR crop of a hippocampus", "headneck-ct", "CT"),
    ("prostate_dicom/images/px_0000/t2_tra", "DICOM MR of a prostate", "cardiac-mr", "MR of the heart"),
    ("prostate_dicom/images/px_0000/adc", "DICOM MR of a prostate", "lesion-pet", "PET"),
    ("prostate_dicom/images/px_0000/t2_tra", "DICOM MR of a prostate", "hippocampus-mr", "MR crop of the head"),
    ("hippocampus/images/{}", "MR crop of a hippocampus", "cardiac-mr", "MR of the heart"),
    ("hippocampus/images/{}", "MR crop of a hippocampus", "left-atrium-mr", "MR crop of the heart"),
    ("la_mr/images/{}", "MR crop of the heart", "cardiac-mr", "MR of the whole chest"),
    ("la_mr/images/{}", "MR crop of the heart", "hippocampus-mr", "MR crop of the head"),
    ("acdc/images/{}", "MR of the chest", "left-atrium-mr", "MR crop of the heart"),
    ("acdc/images/{}", "MR of the chest", "hippocampus-mr", "MR crop of the head"),
    ("acdc/images/{}", "MR of the chest", "efficient-tumour-mr", "two channels of a head"),
    ("lung_mr/images/lung_0004.nii.gz", "MR of a torso", "cardiac-mr", "MR of the heart"),
    ("torso_mr/images/mr_001.nii.gz", "MR of an abdomen", "cardiac-mr", "MR of the heart"),
    ("torso_mr/images/mr_001.nii.gz", "MR of an abdomen", "efficient-phantom-ct", "phantoms"),
    ("spine_mr/images/sct_t2.nii.gz", "MR crop of a spine", "hippocampus-mr", "MR crop of the head"),
)


def card_of(name: str) -> ModelCard:
    try:
        return find_card(name)
    except UnknownModel:
        pytest.skip(f"{name} is not beside this checkout")


def path_of(name: str) -> Path:
    folder = DATA / name.partition("/")[0]
    if not folder.is_dir():
        pytest.skip(f"the real volumes of {folder.name} are not here (FMSEG_SHARED says where)")
    return held_out(folder.name)[0][0] if "{}" in name else DATA / name


def held_out(name: str, part: str = "validation") -> list[list[Path]]:
    """List the files of each case of a part of a set."""
    facts = json.loads((DATA / name / "dataset.json").read_text())
    files = [entry["image"] for entry in facts.get(part, ())]
    return [[DATA / name / one for one in ([image] if isinstance(image, str) else image)] for image in files]


@pytest.fixture(autouse=True)
def nobodys_own_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FMSEG_HOME", str(tmp_path))


@pytest.mark.real
@pytest.mark.parametrize(("file", "_what", "model", "_for"), WRONG, ids=[f"{w[1]} in {w[2]}" for w in WRONG])
def test_a_wrong_pair_is_warned_of(file: str, _what: str, model: str, _for: str) -> None:
    volume, card = read_volume(path_of(file)), card_of(model)
    found = find_misfits(measure_volume(volume), volume.meta, card)
    assert found
    assert found[0].grave


@pytest.mark.real
@pytest.mark.parametrize(("model", "name"), OWN.items())
def test_no_held_out_case_of_a_models_own_set_is_warned_of(model: str, name: str) -> None:
    if not (DATA / name).is_dir():
        pytest.skip(f"the real volumes of {name} are not here (FMSEG_SHARED says where)")
    card, told = card_of(model), {}
    for files in [*held_out(name), *held_out(name, "validation_partial")]:
        volume = read_channels(files)
        if found := find_misfits(measure_volume(volume), volume.meta, card):
            told[files[0].name] = [misfit.text for misfit in found]
    assert told == {}


@pytest.mark.real
def test_the_two_channels_of_a_model_fit_it() -> None:
    path = path_of("brats/images")
    volume = read_channels(sorted(path.glob("brats_0006_*.nii.gz")))
    assert find_misfits(measure_volume(volume), volume.meta, card_of("efficient-tumour-mr")) == ()


@pytest.mark.parametrize("model", ["fmsf-phantom-ct", "efficient-phantom-ct"])
def test_phantoms_fit_the_models_of_phantoms_and_no_other(tmp_path: Path, model: str) -> None:
    write_phantom_dataset(tmp_path / "set", 0, 4, seed=20261)
    for path in sorted((tmp_path / "set" / "imagesTr").glob("*.nii.gz")):
        volume = read_volume(path)
        assert find_misfits(measure_volume(volume), volume.meta, card_of(model)) == ()
        fits = rank(Fit(c, find_misfits(measure_volume(volume), volume.meta, c)) for c in list_models())
        assert {fit.card.name for fit in fits if fit.is_usable} == {"fmsf-phantom-ct", "efficient-phantom-ct"}


@pytest.mark.real
@pytest.mark.parametrize("name", sorted(set(OWN.values())))
def test_the_best_model_for_a_held_out_case_is_one_of_its_set(name: str) -> None:
    if not (DATA / name).is_dir():
        pytest.skip(f"the real volumes of {name} are not here (FMSEG_SHARED says where)")
    cards = list_models()
    if not {model for model, own in OWN.items() if own == name} & {card.name for card in cards}:
        pytest.skip(f"the models of {name} are not beside this checkout")
    for files in held_out(name):
        volume = read_channels(files)
        measures = measure_volume(volume)
        fits = rank(Fit(card, find_misfits(measures, volume.meta, card)) for card in cards)
        assert fits[0].is_usable
        assert {OWN.get(fit.card.name) for fit in fits if fit.is_usable} == {name}


@pytest.mark.real
def test_the_command_line_begins_with_the_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card = card_of("hippocampus-mr")
    words = ["--model", card.name, "--output", str(tmp_path / "mask.nii.gz"), "--device", "cpu"]
    assert cli_main.main(["segment", str(path_of("hn_ct/images/hn_201.nii.gz")), *words]) == 0
    first = capsys.readouterr().err.splitlines()[0]
    assert first.startswith("Warning: The volume has values from -1024")
    assert "trained on MR" in first

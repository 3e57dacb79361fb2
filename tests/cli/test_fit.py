"""What does not fit is the first line, strict refuses it, the manifest keeps it; `models --for` lists what fits."""

import json

import numpy as np
import pytest
import torch

from napari_fmseg.cli import main as cli_main
from napari_fmseg.io import write_volume
from napari_fmseg.models.weights import save_model
from napari_fmseg.nets import build


def run(*words):
    return cli_main.main([str(word) for word in words])


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch, body_card):
    """A user's folder with untrained models for made-up scans."""
    monkeypatch.setenv("FMSEG_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FMSEG_DEBUG", "")
    for kind, changes in (("mr-head", {"restriction": "For research only."}), ("ct-head", {}), ("ct-abdomen", {})):
        card = body_card(kind, **changes)
        with torch.random.fork_rng():
            nets = {part: build(spec.network, **spec.kwargs) for part, spec in card.nets.items()}
        save_model(card, nets, tmp_path / "home" / "models")


@pytest.fixture
def scan_at(tmp_path, body_scan):
    def write(kind, name="scan.nii.gz", seed=0):
        return write_volume(body_scan(kind, seed), tmp_path / "scans" / name)

    return write


def test_what_does_not_fit_is_the_first_line_and_stands_in_the_manifest(scan_at, tmp_path, capsys):
    out = tmp_path / "mask.nii.gz"
    assert run("segment", scan_at("ct-head"), "--model", "mr-head", "--output", out, "--device", "cpu") == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Warning: The volume has values from -10")
    assert "mr-head was trained on MR" in lines[0]
    assert sum("as a CT in HU has" in line for line in lines) == 1
    manifest = json.loads((tmp_path / "mask.nii.gz.json").read_text())
    assert manifest["misfits"] == {"modality": lines[0].removeprefix("Warning: ")}
    assert manifest["seconds"]["reading"] > 0


def test_a_volume_that_fits_has_no_warning(scan_at, tmp_path, capsys):
    out = tmp_path / "mask.nii.gz"
    words = ("--model", "ct-head", "--output", out, "--device", "cpu", "--strict", "--json")
    assert run("segment", scan_at("ct-head"), *words) == 0
    told = capsys.readouterr()
    assert "Warning" not in told.err
    assert json.loads(told.out)["results"][0]["misfits"] == {}
    assert json.loads((tmp_path / "mask.nii.gz.json").read_text())["misfits"] == {}


def test_strict_is_an_error_and_writes_nothing(scan_at, tmp_path, capsys):
    out = tmp_path / "out" / "mask.nii.gz"
    words = ("segment", scan_at("ct-head"), "--model", "ct-abdomen", "--output", out, "--device", "cpu", "--strict")
    assert run(*words) == 1
    told = capsys.readouterr()
    assert told.err.splitlines()[0].startswith("fmseg: ")
    assert "cross-section" in told.err.splitlines()[0]
    assert not out.parent.exists()
    assert run(*words, "--json") == 1
    (row,) = json.loads(capsys.readouterr().out)["results"]
    assert row["error"]["kind"] == "ModelMismatch"


def test_in_a_folder_each_volume_that_does_not_fit_is_named(scan_at, tmp_path, capsys):
    for seed, kind in enumerate(("ct-abdomen", "ct-head", "mr-head")):
        scan_at(kind, f"{kind}.nii.gz", seed)
    words = ("segment", tmp_path / "scans", "--model", "ct-head", "--device", "cpu", "--output")
    assert run(*words, tmp_path / "out") == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("ct-abdomen.nii.gz: Warning: ")
    warned = [line.split(":")[0] for line in lines if "Warning: " in line]
    assert warned == ["ct-abdomen.nii.gz", "mr-head.nii.gz"]
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 3
    assert run(*words, tmp_path / "strict", "--strict") == 1
    assert [path.name for path in (tmp_path / "strict").glob("*.nii.gz")] == ["ct-head_seg.nii.gz"]
    assert "2 of 3 volumes failed" in capsys.readouterr().err


def test_an_unreadable_first_volume_is_told_of_once_and_the_others_go_on(scan_at, tmp_path, capsys):
    scan_at("ct-head", "b.nii.gz")
    (tmp_path / "scans" / "a.nii.gz").write_bytes(b"\x1f\x8b broken")
    words = ("segment", tmp_path / "scans", "--model", "ct-head", "--device", "cpu", "--output", tmp_path / "out")
    assert run(*words) == 1
    told = capsys.readouterr().err
    assert sum(line.startswith("fmseg: ") and "a.nii.gz" in line for line in told.splitlines()) == 1
    assert (tmp_path / "out" / "b_seg.nii.gz").is_file()


def test_models_for_a_file_are_listed_best_first_with_the_reason_why_not(scan_at, capsys):
    assert run("models", "--for", scan_at("ct-head")) == 0
    told = capsys.readouterr()
    lines = [line for line in told.out.splitlines() if line.strip()]
    assert lines[0].split() == ["MODEL", "FITS", "DICE", "PATIENTS", "SEGMENTS"]
    assert lines[1].split()[2:4] == ["-", "-"], "nobody states on how many patients its Dice was measured"
    assert lines[1].split()[:2] == ["ct-head", "yes"]
    verdicts = {line.split()[0]: line.split()[1] for line in lines[1:] if line.split()[1] in ("yes", "no")}
    assert verdicts["ct-abdomen"] == verdicts["mr-head"] == "no"
    assert any(line.startswith("mr-head: ") and "trained on MR" in line for line in lines)
    assert any(line.startswith("ct-abdomen: ") and "cross-section" in line for line in lines)
    assert "No model here fits" not in told.err


def test_models_for_a_file_as_json(scan_at, capsys):
    assert run("models", "--for", scan_at("mr-head"), "--json") == 0
    listed = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert next(iter(listed)) == "mr-head"
    assert listed["mr-head"] | {"labels": None} == {
        "name": "mr-head", "fits": True, "usable": True, "mean_dice": 0.9, "patients": 0, "labels": None, "misfits": []
    }  # fmt: skip
    (misfit,) = listed["ct-head"]["misfits"]
    assert (misfit["kind"], misfit["grave"]) == ("values", True)
    assert not listed["ct-head"]["usable"]


def test_where_no_model_fits_it_is_said(scan_at, capsys):
    assert run("models", "--for", scan_at("pet-body")) == 0
    assert "No model here fits this volume." in capsys.readouterr().err


def test_a_file_that_is_no_volume_is_refused_by_models_too(tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.zeros(3))
    assert run("models", "--for", tmp_path / "x.npy") == 1
    assert "x.npy" in capsys.readouterr().err

"""What a card proves of half precision is what `auto` takes, and nothing else."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from napari_fmseg.cli.main import main
from napari_fmseg.core.errors import UnknownModel
from napari_fmseg.models.card import ModelCard, NetSpec, read_card, write_card
from napari_fmseg.models.half_precision import HalfPrecision
from napari_fmseg.models.provenance import precision_of
from napari_fmseg.models.settings import PIPELINES
from napari_fmseg.models.weights import Model, load_model, save_model
from napari_fmseg.nets import build
from napari_fmseg.nets.runtime import device as net_device

SHA = "ab" * 32
CPU = torch.device("cpu")


def card_with(dice: float = 0.9995, sha256: str = SHA, **fields: Any) -> ModelCard:
    proof = HalfPrecision({"liver": 1.0, "spleen": dice}, 4, sha256, "the validation cases", "a processor")
    given = {"half_precision": proof, "sha256": SHA, "pipeline": "coarse_fine", **fields}
    return ModelCard(
        "m", "M", nets={"coarse": NetSpec("unet3d", {"n_classes": 3, "width": 2})}, labels={1: "liver", 2: "spleen"},
        **given,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def a_processor_that_has_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FMSEG_CPU_CAPABILITY", raising=False)
    monkeypatch.setattr(net_device, "_cpu_has_bfloat16", lambda: True)


@pytest.mark.parametrize(
    ("card", "precision"),
    [
        (card_with(), "bfloat16"),
        (card_with(0.999), "bfloat16"),
        (card_with(0.9989), "float32"),
        (card_with(sha256="cd" * 32), "float32"),  # measured with other weights
        (card_with(half_precision=None), "float32"),
        (card_with(half_precision=None, settings={"half_is_right": True}), "float32"),  # a claim without figures
        (card_with(half_precision=None, pipeline="single"), "float32"),
        (card_with(pipeline="single"), "bfloat16"),
    ],
)
def test_auto_takes_bfloat16_on_a_processor_only_where_the_card_proves_it(card: ModelCard, precision: str) -> None:
    assert precision_of(Model(card, {}, CPU), "auto") == precision
    assert precision_of(Model(card, {}, CPU), "bfloat16") == "bfloat16"


def test_the_proof_is_written_and_read_back(tmp_path: Path) -> None:
    write_card(card_with(), tmp_path / "m.toml")
    assert read_card(tmp_path / "m.toml") == card_with()
    assert read_card(tmp_path / "m.toml").half_precision_ok is True


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("dice_vs_float32 = {liver = 1.0}", "expected liver, spleen"),
        ("dice_vs_float32 = {liver = 1.0, spleen = 1.2}", "spleen = 1.2"),
        ("dice_vs_float32 = {liver = 1.0, spleen = nan}", "spleen = nan"),
        ("dice_vs_float32 = {}", "a Dice from 0 to 1 for every class"),
        ("n_cases = 0", "0 cases"),
        ("sha256 = 'short'", "64 digits.*'short'"),
        ("dice = 1.0", "no field half_precision.dice;"),
    ],
)
def test_figures_that_prove_nothing_are_refused(tmp_path: Path, line: str, told: str) -> None:
    given = {"dice_vs_float32": "{liver = 1.0, spleen = 1.0}", "n_cases": "4", "sha256": f"'{SHA}'"}
    name, _, value = line.partition(" = ")
    table = "\n".join(f"{k} = {v}" for k, v in {**given, name: value}.items())
    write_card(card_with(half_precision=None), tmp_path / "m.toml")
    with (tmp_path / "m.toml").open("a") as file:
        file.write(f"\n[half_precision]\n{table}\n")
    with pytest.raises(UnknownModel, match=told):
        read_card(tmp_path / "m.toml")


def test_other_weights_lose_the_proof(tmp_path: Path) -> None:
    nets = {"coarse": build("unet3d", n_classes=3, width=2)}
    first = save_model(card_with(half_precision=None), nets, tmp_path)
    proven = dataclasses.replace(first, half_precision=card_with(sha256=first.sha256).half_precision)
    assert save_model(proven, nets, tmp_path).half_precision_ok is True
    torch.nn.init.zeros_(next(nets["coarse"].parameters()))
    assert save_model(proven, nets, tmp_path).half_precision is None
    assert load_model(tmp_path / "m.toml", device="cpu").card.half_precision_ok is None


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_an_older_card_that_forbids_half_precision_is_read_and_obeyed(pipeline: str) -> None:
    card = card_with(half_precision=None, pipeline=pipeline, settings={"half_is_right": False})
    settings = PIPELINES[pipeline].settings
    assert settings.of(card.settings) == settings()
    assert card.half_precision_ok is False


def test_the_list_of_models_tells_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FMSEG_HOME", str(tmp_path))
    (tmp_path / "models").mkdir()
    write_card(card_with(0.91), tmp_path / "models" / "m.toml")
    assert main(["models"]) == 0
    words = " ".join(capsys.readouterr().out.split())
    assert "m, half precision: bfloat16 against float32: lowest Dice 0.9100 (spleen), 4 cases" in words
    assert "taken only when asked for" in words

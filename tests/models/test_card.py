"""Model cards: written, listed, loaded; what is broken is refused and hides nothing."""

from __future__ import annotations

import dataclasses
import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from napari_fmseg.core.errors import DeviceUnavailable, InvalidRecipe, UnknownModel, WeightsMismatch
from napari_fmseg.models.card import Intensity, ModelCard, NetSpec, read_card, write_card
from napari_fmseg.models.folders import user_models_folder
from napari_fmseg.models.registry import find_card, list_models
from napari_fmseg.models.weights import load_model, save_model
from napari_fmseg.nets import build
from napari_fmseg.pipelines import SegmentOptions

SNET = NetSpec("snet", {"in_channels": 2, "n_classes": 3, "width": 4})
EDGE = NetSpec("edgenet", {"in_channels": 2, "n_classes": 3})
CARD = ModelCard(
    name="test-organs",
    title="Two organs",
    pipeline="phased",
    nets={"consensus": SNET, "edge": EDGE},
    labels={1: "liver", 2: "spleen"},
    modality="MR",
    channels=("T1", "T2"),
    spacing_mm=(3.0, 1.5, 1.5),
    intensity=Intensity("window", -100.0, 200.0, minmax=True),
    settings={"consensus_grid": [32, 32, 32], "window": "all"},
    limits='Two lines,\nand "quotes".',
    scores={"labels": {"liver": 0.9, "spleen": 0.7}},
)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder, empty."""
    monkeypatch.setenv("FMSEG_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "models"


def nets_of(card: ModelCard = CARD, seed: int = 0) -> dict[str, torch.nn.Module]:
    torch.manual_seed(seed)
    return {part: build(spec.network, **spec.kwargs) for part, spec in card.nets.items()}


def own_names() -> set[str]:
    return {card.name for card in list_models() if card.folder == user_models_folder()}


def test_a_saved_model_is_listed_and_loaded_with_equal_weights(home: Path) -> None:
    nets = nets_of()
    written = save_model(CARD, nets, home)
    assert [card for card in list_models() if card.name == CARD.name] == [written]
    model = load_model(CARD.name, device="cpu")
    for part, net in nets.items():
        own = model.nets[part]
        assert not own.training
        assert not any(p.requires_grad for p in own.parameters())
        for key, value in net.state_dict().items():
            torch.testing.assert_close(own.state_dict()[key], value, rtol=0, atol=0)


def test_a_card_keeps_every_field(home: Path) -> None:
    written = save_model(CARD, nets_of(), home)
    plain = dataclasses.replace(CARD, weights=written.weights, sha256=written.sha256)
    assert find_card(CARD.name) == plain
    assert find_card(CARD.name).mean_dice == pytest.approx(0.8)
    assert find_card(CARD.name).n_classes == 3


def test_half_weights_take_half_the_room_and_are_rounded_to_float16(tmp_path: Path) -> None:
    nets = nets_of()
    whole = save_model(CARD, nets, tmp_path / "whole").weights_path.stat().st_size
    halved = save_model(CARD, nets, tmp_path / "half", half=True)
    assert halved.weights_path.stat().st_size < 0.6 * whole
    loaded = load_model(halved, device="cpu").nets["consensus"].state_dict()
    for key, value in nets["consensus"].state_dict().items():
        assert loaded[key].dtype == torch.float32
        torch.testing.assert_close(loaded[key], value.half().float(), rtol=0, atol=0)


def test_a_model_is_loaded_by_the_path_of_its_card(tmp_path: Path) -> None:
    save_model(CARD, nets_of(), tmp_path / "elsewhere")
    assert load_model(tmp_path / "elsewhere" / "test-organs.toml", device="cpu").card.name == CARD.name


def test_an_altered_weights_file_is_refused(home: Path) -> None:
    path = save_model(CARD, nets_of(), home).weights_path
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(WeightsMismatch, match="sha256"):
        load_model(CARD.name, device="cpu")


@pytest.mark.parametrize("size", [0, 5, 100, -1])
def test_a_truncated_weights_file_is_refused_with_or_without_a_hash(home: Path, size: int) -> None:
    written = save_model(CARD, nets_of(), home)
    written.weights_path.write_bytes(written.weights_path.read_bytes()[:size])
    with pytest.raises(WeightsMismatch, match="altered or only partly copied"):
        load_model(written, device="cpu")
    with pytest.raises(WeightsMismatch, match="not a safetensors file"):
        load_model(dataclasses.replace(written, sha256=""), device="cpu")


def test_missing_weights_are_told_by_name(home: Path) -> None:
    save_model(CARD, nets_of(), home).weights_path.unlink()
    with pytest.raises(WeightsMismatch, match=r"test-organs\.safetensors"):
        load_model(CARD.name, device="cpu")


def test_weights_of_another_network_are_refused_and_the_entries_named(home: Path) -> None:
    written = save_model(CARD, nets_of(), home)
    wrong = dataclasses.replace(written, nets={"consensus": EDGE, "edge": EDGE})
    with pytest.raises(WeightsMismatch) as told:
        load_model(wrong, device="cpu")
    assert "missing ['fc.0.bias', 'fc.0.weight'" in str(told.value)
    assert "surplus ['con.bias', 'con.weight'" in str(told.value)


def test_weights_of_another_width_are_refused_and_the_shapes_named(home: Path) -> None:
    written = save_model(CARD, nets_of(), home)
    wider = NetSpec("snet", {**SNET.kwargs, "width": 8})
    with pytest.raises(WeightsMismatch, match=r"other shapes \['con.bias'"):
        load_model(dataclasses.replace(written, nets={"consensus": wider}), device="cpu")


def test_an_unknown_model_is_told_which_there_are(home: Path) -> None:
    save_model(CARD, nets_of(), home)
    with pytest.raises(UnknownModel, match=r"'no-such'.*test-organs"):
        load_model("no-such", device="cpu")


def test_a_model_that_was_replaced_is_told_by_which(home: Path) -> None:
    save_model(dataclasses.replace(CARD, replaces=("older-organs",)), nets_of(), home)
    with pytest.raises(UnknownModel, match=r"'older-organs' any more\. 'test-organs' replaces it"):
        find_card("older-organs")


@pytest.mark.parametrize("path", ["missing.toml", "sub/missing.toml"])
def test_a_card_that_is_not_there_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(UnknownModel, match=r"missing\.toml"):
        load_model(tmp_path / path, device="cpu")


def test_a_network_that_nobody_knows_is_refused(home: Path) -> None:
    written = save_model(CARD, nets_of(), home)
    with pytest.raises(UnknownModel, match="no network 'transformer'"):
        load_model(dataclasses.replace(written, nets={"consensus": NetSpec("transformer")}), device="cpu")


def test_a_device_that_is_not_there_is_refused(home: Path) -> None:
    save_model(CARD, nets_of(), home)
    with pytest.raises(DeviceUnavailable):
        load_model(CARD.name, device="abacus")


GOOD = 'name = "bad"\ntitle = "t"\npipeline = "phased"\n[nets.consensus]\nnetwork = "snet"\n[labels]\n1 = "a"\n'


@pytest.mark.parametrize(
    "text",
    [
        "",
        "this is no TOML",
        "\x00\x01",
        GOOD.replace('title = "t"', ""),
        GOOD.replace('title = "t"', 'title = "t"\nsurprise = 1'),
        GOOD.replace('name = "bad"', "name = 5"),
        GOOD.replace('title = "t"', 'title = "t"\nchannels = "CT"'),
        GOOD.replace('title = "t"', 'title = "t"\nspacing_mm = ["1", "1", "1"]'),
        GOOD.replace('title = "t"', 'title = "t"\nmodality = ["CT"]'),
        GOOD.replace('1 = "a"', 'liver = "a"'),
        GOOD.replace('1 = "a"', "1 = 5"),
        GOOD.replace('1 = "a"', '0 = "background"\n1 = "a"'),
        GOOD.replace('1 = "a"', '-1 = "a"'),
        GOOD.replace('[nets.consensus]\nnetwork = "snet"', 'nets = "snet"'),
        GOOD.replace('network = "snet"', 'netwrok = "snet"'),
        GOOD + '[intensity]\nkind = "magic"\n',
        GOOD + "[intensity]\nlow = 5.0\nhigh = 5.0\n",
    ],
    ids=itertools.count(),
)
def test_a_broken_card_is_refused_and_hides_no_other(home: Path, text: str) -> None:
    save_model(CARD, nets_of(), home)
    (home / "bad.toml").write_text(text)
    assert own_names() == {CARD.name}
    with pytest.raises(UnknownModel, match=r"bad\.toml"):
        find_card(home / "bad.toml")


def test_a_good_card_is_listed_before_its_weights_are_asked_for(home: Path) -> None:
    home.mkdir(parents=True)
    (home / "bad.toml").write_text(GOOD)
    assert own_names() == {"bad"}


def test_a_binary_file_called_toml_hides_no_card(home: Path) -> None:
    save_model(CARD, nets_of(), home)
    (home / "bad.toml").write_bytes(b"\xff\xfe\x00")
    (home / "folder.toml").mkdir()
    assert own_names() == {CARD.name}


def test_the_users_model_shows_at_once_and_replaces_one_of_the_same_name(home: Path) -> None:
    before = {card.name for card in list_models()}
    assert CARD.name not in before
    save_model(CARD, nets_of(), home)
    save_model(dataclasses.replace(CARD, title="Newer"), nets_of(seed=1), home)
    assert {card.name for card in list_models()} == before | {CARD.name}
    assert find_card(CARD.name).title == "Newer"


def test_a_model_in_a_folder_of_its_own_is_found_with_its_weights(home: Path) -> None:
    save_model(CARD, nets_of(), home / "mine")
    assert load_model(CARD.name, device="cpu").card.folder == home / "mine"


def test_weights_outside_the_cards_folder_are_not_read(home: Path, tmp_path: Path) -> None:
    written = save_model(CARD, nets_of(), tmp_path / "secret")
    astray = dataclasses.replace(written, weights="../../secret/test-organs.safetensors")
    home.mkdir(parents=True)
    write_card(astray, home / "astray.toml")
    with pytest.raises((WeightsMismatch, UnknownModel)):
        load_model(home / "astray.toml", device="cpu")


def test_saving_leaves_only_the_two_files(home: Path) -> None:
    save_model(CARD, nets_of(), home)
    assert sorted(p.name for p in home.iterdir()) == ["test-organs.safetensors", "test-organs.toml"]


def test_listing_models_imports_no_torch(home: Path) -> None:
    save_model(CARD, nets_of(), home)
    look = (
        "import sys; from napari_fmseg.models.registry import list_models; "
        "print([c.name for c in list_models()], 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert CARD.name in done.stdout
    assert done.stdout.strip().endswith("False")


def test_neighbouring_labels_have_colours_that_can_be_told_apart() -> None:
    colors = dataclasses.replace(CARD, labels={i: str(i) for i in range(1, 8)}).colors
    for i in range(1, 7):
        assert max(abs(a - b) for a, b in zip(colors[i], colors[i + 1], strict=True)) > 0.3


def test_counters_and_positions_stay_whole_numbers_in_half_weights(tmp_path: Path) -> None:
    """A position beyond 2048 has no exact float16; a network of windowed attention holds such."""
    kwargs = {"widths": [4, 4, 8, 8, 8], "heads": [1, 1, 1], "windows": [7, 2, 2]}
    net = build("pctnet", **kwargs)
    card = dataclasses.replace(CARD, nets={"net": NetSpec("pctnet", kwargs)})
    again = load_model(save_model(card, {"net": net}, tmp_path, half=True), device="cpu").nets["net"]
    whole = {k: v for k, v in net.state_dict().items() if not v.is_floating_point()}
    assert max(v.max().item() for v in whole.values()) > 2048
    assert all(torch.equal(again.state_dict()[k], v) for k, v in whole.items())


TEXT = 'name = "m"\ntitle = "M"\npipeline = "single"\n'


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "empty"),
        (b"a=" + b"[" * 100_000, "deeply"),
        (b"\xff\xfe", "UTF-8"),
        ((TEXT + "[labels]\n99999999999 = 'a'\n[nets]\n").encode(), "labels"),
        ((TEXT + "[labels]\n" + "9" * 5000 + " = 'a'\n[nets]\n").encode(), "labels"),
        ((TEXT + "nets = 5\n[labels]\n").encode(), "nets"),
        ((TEXT + "[nets]\nnet = 5\n[labels]\n").encode(), r"nets\.net"),
        ((TEXT + "[nets]\n[labels]\n[intensity]\nlow = nan\n").encode(), r"intensity\.low"),
        ((TEXT + "spacing_mm = [inf, 1, 1]\n[nets]\n[labels]\n").encode(), "spacing_mm"),
        ((TEXT.replace('"m"', '"../m"') + "[nets]\n[labels]\n").encode(), "cannot be the name"),
        ((TEXT + 'weights = "../w"\n[nets]\n[labels]\n').encode(), "weights"),
    ],
)
def test_a_card_of_odd_shape_is_told_with_file_and_field(content: bytes, told: str, tmp_path: Path) -> None:
    path = tmp_path / "card.toml"
    path.write_bytes(content)
    with pytest.raises(UnknownModel, match=rf"card\.toml.*{told}"):
        read_card(path)


def test_a_class_without_a_score_does_not_make_a_card_unreadable(tmp_path: Path) -> None:
    path = tmp_path / "card.toml"
    path.write_text(TEXT + "[nets]\n[labels]\n1 = 'a'\n[scores.labels]\na = nan\n")
    assert read_card(path).labels == {1: "a"}


@pytest.mark.parametrize("kwargs", [{"width": "x"}, {"width": -1}, {"width": []}, {"width": 2.5}, {"width": None}])
def test_arguments_of_a_network_that_make_no_sense_are_told(kwargs: dict[str, object]) -> None:
    with pytest.raises(UnknownModel, match=r"(?i)unet3d.*width"):
        build("unet3d", **kwargs)


@pytest.mark.parametrize(
    ("name", "value"),
    [("min_component_ml", float("nan")), ("overlap", 1.0), ("overlap", float("nan")), ("window_batch", 0),
     ("max_memory_gb", float("inf")), ("min_component_ml", -1.0)],
)  # fmt: skip
def test_an_option_that_makes_no_sense_is_told_by_its_name(name: str, value: float) -> None:
    with pytest.raises(InvalidRecipe, match=name):
        SegmentOptions(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("scored_on", "n"),
    [
        ("28 held-out cases, which also chose the best epoch", 28),
        ("12 held-out volumes of 6 patients (2 with a dilated heart, whose 4 volumes also chose the best epoch)", 6),
        ("1 patient, skull-stripped", 1),
        ("the validation cases", 0),
        ("", 0),
    ],
)
def test_the_number_of_patients_behind_a_dice_is_read_from_what_it_was_scored_on(scored_on: str, n: int) -> None:
    assert ModelCard("m", "m", "single", {}, {1: "organ"}, scored_on=scored_on).n_scored == n


def test_every_shipped_card_states_on_how_many_patients_its_dice_was_measured() -> None:
    assert all(card.n_scored for card in list_models() if card.mean_dice is not None)

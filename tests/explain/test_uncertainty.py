"""Where a model contradicts itself, on volumes that it knows and on one that it does not."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from napari_fmseg.core.errors import InvalidRecipe
from napari_fmseg.core.events import Progress, StageResult
from napari_fmseg.core.volume import Geometry, LabelMap, Volume
from napari_fmseg.datasets.phantom import phantom_ct
from napari_fmseg.explain.uncertainty import case_uncertainty, mirror_label_pairs, rank_by_uncertainty, uncertainty
from napari_fmseg.models.card import Intensity, ModelCard, NetSpec
from napari_fmseg.models.weights import Model, load_model


class Sides(torch.nn.Module):
    """Calls what is bright left where x is high and right where it is low; blind to faint things on the low side."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x[:, 0]
        n = x.shape[-1]
        high = torch.arange(n) >= n // 2
        left = 10 * ((x > 0.2) & high)
        right = 10 * ((x > 0.8) & ~high)
        return torch.stack([torch.full_like(x, 5.0), left, right], 1)


def model() -> Model:
    card = ModelCard(
        "sides", "sides", "single", {"net": NetSpec("fmunet")}, {1: "lung_left", 2: "lung_right"},
        intensity=Intensity("window", 0, 1), settings={"window": [8, 8, 8]},
    )  # fmt: skip
    return Model(card, {"net": Sides().eval()}, torch.device("cpu"))


def seen(volume: Volume, **changes: str) -> tuple[LabelMap, Volume]:
    events = list(uncertainty(volume, model(), **changes))
    results = {e.stage: e.output for e in events if isinstance(e, StageResult)}
    labels = results["labels"]
    assert isinstance(labels, LabelMap)
    assert isinstance(events[-1], StageResult)
    assert [e.done for e in events if isinstance(e, Progress)][-1] == 1 + len(changes.get("flips", "x"))
    return labels, results["uncertainty"]


@pytest.mark.parametrize("turn", [np.eye(3), np.eye(3)[:, [2, 0, 1]], np.diag([1.0, 1.0, -1.0])])
def test_what_is_seen_from_one_side_only_is_uncertain_in_every_orientation(turn: np.ndarray) -> None:
    data = np.zeros((8, 8, 8), np.float32)
    data[2, 2, 6], data[2, 2, 1] = 0.5, 1.0  # faint, found on the high side only; bright, found anywhere
    canonical = Volume(data, Geometry.from_spacing((8, 8, 8)))
    geometry = Geometry.from_spacing((8, 8, 8), direction=turn)
    own, order, flips = geometry.canonical()
    stored = np.flip(canonical.data, flips).transpose(np.argsort(order))
    labels, share = seen(Volume(np.ascontiguousarray(stored), geometry))
    back = np.flip(share.data.transpose(order), flips)
    expected = np.zeros((8, 8, 8), np.float32)
    expected[2, 2, 6] = 1
    np.testing.assert_array_equal(back, expected)
    assert share.data.dtype == np.float32
    assert share.geometry == geometry
    assert labels.data.any()
    assert share.meta["doubt"] == pytest.approx(0.5)
    assert own.shape == (8, 8, 8)


class Middle(torch.nn.Module):
    """Finds what lies in the middle of the volume that it is given, along z."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n = x.shape[2]
        inside = ((torch.arange(n) >= n // 4) & (torch.arange(n) < n - n // 4))[:, None, None].expand_as(x[:, 0])
        return torch.stack([0.5 * torch.ones_like(x[:, 0]), inside.to(x.dtype)], 1)


def test_a_network_on_the_whole_volume_is_uncertain_where_a_part_of_it_gives_another_answer() -> None:
    card = ModelCard(
        "middle", "middle", "phased", {"consensus": NetSpec("fmunet")}, {1: "middle"},
        intensity=Intensity("window", 0, 1), settings={"consensus_grid": [32, 32, 32]},
    )  # fmt: skip
    centred = Model(card, {"consensus": Middle().eval()}, torch.device("cpu"))
    data = np.random.default_rng(0).random((32, 32, 32), np.float32)
    *_, last = uncertainty(Volume(data, Geometry.from_spacing((32, 32, 32))), centred)
    assert isinstance(last, StageResult)
    doubt = last.output.data[:, 16, 16]
    np.testing.assert_array_equal(doubt[12:20], 0)  # found in each view
    np.testing.assert_array_equal(doubt[:3], 0)  # missing from each part: one answer only
    assert doubt[[8, 23]].min() > 0  # the ends of what was found move with the view
    assert 0 < last.output.meta["doubt"] < 0.5


def test_sides_change_their_names_in_a_mirror() -> None:
    assert mirror_label_pairs({1: "lung_left", 2: "Lung_Right", 3: "liver", 4: "left atrium"}) == {1: 2, 2: 1}


def test_nothing_found_is_the_greatest_doubt() -> None:
    nothing = np.zeros((2, 2, 2), np.uint8)
    assert case_uncertainty(np.zeros((2, 2, 2), np.float32), [nothing, nothing]) == 1.0


def test_the_most_doubtful_case_comes_first() -> None:
    assert rank_by_uncertainty({"a": 0.1, "b": 0.5, "c": 0.1}) == ("b", "a", "c")


def test_another_axis_is_refused() -> None:
    with pytest.raises(InvalidRecipe, match="w"):
        list(uncertainty(Volume(np.zeros((8, 8, 8), np.float32), Geometry.from_spacing((8, 8, 8))), model(), flips="w"))


@pytest.mark.parametrize("flips", ["", "x"])
def test_a_spoiled_phantom_is_more_uncertain_than_the_phantom(flips: str) -> None:
    volume, _ = phantom_ct(3, spacing=(6.0, 6.0, 6.0))
    shipped = load_model("fmsf-phantom-ct", device="cpu")
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 250, volume.data.shape).astype(np.float32)
    spoiled = Volume(np.where(volume.data > -500, volume.data + noise, volume.data), volume.geometry, volume.meta)
    doubts = []
    for case in (volume, spoiled):
        *_, last = uncertainty(case, shipped, flips=flips)
        assert isinstance(last, StageResult)
        assert last.output.geometry == case.geometry
        assert 0 <= last.output.data.min() <= last.output.data.max() <= 1
        doubts.append(last.output.meta["doubt"])
    sys.stdout.write(f"doubt {doubts[0]:.3f}, spoiled {doubts[1]:.3f}\n")
    assert doubts[1] > 1.1 * doubts[0]

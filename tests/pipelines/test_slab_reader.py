"""Boxes of a volume on small grids, mapped by its intensities: what the whole volume as floats would give."""

from __future__ import annotations

import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch

from napari_fmseg.core.resampling_torch import slabs, zoom
from napari_fmseg.core.volume import Box
from napari_fmseg.models.card import Intensity
from napari_fmseg.pipelines import preprocessing, slab_reader
from napari_fmseg.pipelines.preprocessing import normalise, whole_box
from napari_fmseg.pipelines.slab_reader import SlabReader

CPU = torch.device("cpu")
KINDS = {
    "window": Intensity("window", -100, 300),
    "percentile": Intensity("percentile", 2, 95),
    "zscore": Intensity("zscore"),
    "window_zscore": Intensity("window_zscore", -100, 300),
    "fixed_zscore": Intensity("fixed_zscore", -100, 300, mean=40.0, std=80.0),
    "none": Intensity("none"),
}


@pytest.fixture
def small_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (preprocessing, slab_reader):
        monkeypatch.setattr(module, "slabs", partial(slabs, voxels=7000))


def stored() -> np.ndarray:
    rng = np.random.default_rng(2)
    data = rng.normal(60, 130, (2, 31, 42, 37)) + np.array([0, 400]).reshape(2, 1, 1, 1)
    return np.flip(data.astype(np.int16), (1, 3))


def mapped(data: np.ndarray, how: Intensity) -> np.ndarray:
    """The channels of a whole volume by numpy in double precision."""
    out = []
    for channel in data.astype(float):
        low, high = np.percentile(channel, [how.low, how.high]) if how.kind == "percentile" else (how.low, how.high)
        clipped = channel if how.kind in ("zscore", "none") else channel.clip(low, high)
        if how.kind == "none":
            out.append(channel)
        elif how.kind == "fixed_zscore":
            out.append((clipped - how.mean) / how.std)
        elif how.kind.endswith("zscore"):
            out.append((clipped - clipped.mean()) / clipped.std())
        else:
            out.append((clipped - low) / (high - low))
    return np.stack(out)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("small_slabs")
def test_a_volume_is_mapped_by_what_is_measured_of_all_of_it(kind: str) -> None:
    data, how = stored(), KINDS[kind]
    expected = torch.from_numpy(mapped(data, how)).float()
    tolerance = {"atol": 2e-4 if kind == "none" else 2e-5, "rtol": 1e-5}
    torch.testing.assert_close(normalise(torch.from_numpy(data.copy()), how), expected, **tolerance)
    reader, box = SlabReader(data, CPU, how), (slice(3, 20), slice(0, 40), slice(10, 37))
    torch.testing.assert_close(reader.voxels(box), expected[(slice(None), *box)], **tolerance)
    torch.testing.assert_close(reader.read(box, (17, 40, 27)), expected[(slice(None), *box)], **tolerance)


@pytest.mark.parametrize("size", [(9, 11, 8), (30, 50, 64), (5, 60, 27)], ids=["coarser", "finer", "mixed"])
@pytest.mark.parametrize("around", ["all", "near"])
@pytest.mark.usefixtures("small_slabs")
def test_means_at_the_edge_of_a_box_reach_into_what_lies_around_it(size: tuple[int, int, int], around: str) -> None:
    data = stored()
    box = (slice(3, 20), slice(0, 40), slice(10, 36))
    outer: Box = whole_box(data.shape[1:]) if around == "all" else (slice(2, 21), slice(0, 41), slice(4, 37))
    whole = torch.from_numpy(data[(slice(None), *outer)].astype(np.float32))
    spans = [(b.start - o.start, b.stop - o.start) for b, o in zip(box, outer, strict=True)]
    expected = zoom(whole, spans, size)
    reader = SlabReader(data, CPU)
    torch.testing.assert_close(reader.read(box, size, outer), expected, atol=1e-3, rtol=1e-5)
    alone = zoom(torch.from_numpy(data[(slice(None), *box)].astype(np.float32)), [(0, 17), (0, 40), (0, 26)], size)
    torch.testing.assert_close(reader.read(box, size), alone, atol=1e-3, rtol=1e-5)
    assert (expected - alone).abs().max() > 1


@pytest.mark.usefixtures("small_slabs")
def test_the_body_is_found_in_what_the_networks_see() -> None:
    data = np.full((1, 20, 30, 25), -1000, np.int16)
    data[0, 4:9, 10:28, 3:20] = 50
    reader = SlabReader(data, CPU, Intensity("window", -1000, 1000))
    assert reader.body(0.2) == (slice(4, 9), slice(10, 28), slice(3, 20))
    assert reader.body(0.9) == reader.body(None) == whole_box((20, 30, 25))


@pytest.mark.parametrize("kind", ["window", "percentile"])
def test_a_device_without_room_gives_what_the_computer_gives(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data, box, here = stored(), (slice(3, 20), slice(0, 40), slice(10, 36)), slab_reader.to_tensor

    def to_cpu(array: np.ndarray, device: torch.device | str = "cpu") -> torch.Tensor:
        if torch.device(device).type != "cpu":
            raise torch.OutOfMemoryError("no memory")
        return here(array, device)

    monkeypatch.setattr(slab_reader, "to_tensor", to_cpu)
    full, expected = (SlabReader(data, torch.device(name), KINDS[kind]) for name in ("meta", "cpu"))
    assert not full.to_device()
    assert full.body(0.5) == expected.body(0.5)
    assert torch.equal(full.read(box, (9, 11, 8)), expected.read(box, (9, 11, 8)))
    assert full.device == CPU


def test_a_volume_is_left_as_it_was() -> None:
    data = stored().astype(np.float32)
    before = data.copy()
    SlabReader(data, CPU, KINDS["window"]).read((slice(0, 31), slice(0, 42), slice(0, 37)), (31, 42, 37))
    np.testing.assert_array_equal(data, before)


def test_a_phased_run_holds_no_floats_of_the_whole_volume() -> None:
    """They would take 210 MB; another process, whose peak is not that of the tests before this one."""
    child = """
import numpy as np, torch
from torch import nn
from napari_fmseg.core.events import drain
from napari_fmseg.core.processes import peak_bytes
from napari_fmseg.core.volume import Geometry, Volume
from napari_fmseg.models.card import Intensity, ModelCard, NetSpec
from napari_fmseg.models.weights import Model
from napari_fmseg.pipelines import SegmentOptions, segment
class Bright(nn.Module):
    activation = "none"
    def forward(self, x, *beside):
        return torch.cat([1 - x[:, :1], x[:, :1]], 1)
def run(shape):
    nets = {"consensus": Bright(), "attention": Bright()}
    settings = {"consensus_grid": (16, 16, 16), "attention_grid": (16, 16, 16), "crop_above": 0.1}
    card = ModelCard(name="m", title="m", pipeline="phased", nets={n: NetSpec("snet") for n in nets},
                     labels={1: "organ"}, intensity=Intensity("window", 0, 100), settings=settings)
    data = np.zeros(shape, np.int16)
    data[:, 200:300, 200:300] = 100
    volume = Volume(data, Geometry.from_spacing(shape))
    before = peak_bytes()
    assert drain(segment(volume, Model(card, nets, torch.device("cpu")), SegmentOptions(device="cpu"))).data.any()
    return peak_bytes() - before
run((8, 512, 512))
print(run((200, 512, 512)))
"""
    done = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 150e6

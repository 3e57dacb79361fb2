import json

import numpy as np
import pytest
import torch

from napari_fmseg.core.errors import GeometryMismatch
from napari_fmseg.pipelines.attention_map import attention_map, window_v1, window_v2


@pytest.fixture
def balls():
    """Two balls of foreground, the first one larger, in (24, 30, 36)."""
    z, y, x = torch.meshgrid(torch.arange(24), torch.arange(30), torch.arange(36), indexing="ij")
    large = ((z - 10) ** 2 + (y - 9) ** 2 + (x - 12) ** 2) <= 25
    small = ((z - 16) ** 2 + (y - 22) ** 2 + (x - 30) ** 2) <= 9
    return large.float() * 0.9 + small.float() * 0.8


def consensus_output(about):
    """Compute the two probabilities from the formula in the golden file."""
    z, y, x = np.meshgrid(*[np.arange(128.0)] * 3, indexing="ij")
    distance = np.sqrt(((z - 70) / 1.4) ** 2 + (y - 55) ** 2 + ((x - 60) / 1.7) ** 2)
    g = 2 * (22 - distance)
    p = torch.from_numpy(np.stack([-g / 2, g / 2]).astype(np.float32)).softmax(0)
    assert p[1].double().sum().item() == pytest.approx(about["input_checks"]["foreground_sum"], rel=1e-6)
    return p


def test_attention_map_and_window_are_the_published_ones(golden_here):
    with np.load(golden_here / "fmsf_v1_attn_window.npz") as data:
        about, attention, window = json.loads(str(data["about"])), data["attention"], data["window"]
    p = consensus_output(about)
    ours = attention_map(p[1][None, None])[0, 0]
    np.testing.assert_allclose(ours[::4, ::4, ::4], attention, rtol=1e-5, atol=1e-5)
    assert ours.double().sum().item() == pytest.approx(about["values"]["attention_sum"], rel=1e-5)
    assert [edge for s in window_v1(p[0]) for edge in (s.start, s.stop)] == window.tolist()


@pytest.mark.parametrize("shape", [(3, 5, 7), (36, 50, 36), (1, 64, 64)])
def test_attention_map_keeps_its_range_on_any_grid(shape):
    p = torch.rand(2, 1, *shape, generator=torch.Generator().manual_seed(0))
    a = attention_map(p)
    assert a.shape == p.shape
    assert a.min() >= 1 / 11 - 1e-6
    assert a.max() <= 1


def test_window_holds_the_largest_piece_only(balls):
    assert window_v2(balls, margin=(0, 0)) == (slice(5, 16), slice(4, 15), slice(7, 18))
    assert window_v2(balls) == (slice(3, 19), slice(2, 18), slice(5, 21))


def test_window_holds_all_large_pieces_if_asked(balls):
    assert window_v2(balls, margin=(0, 0), keep_share=0.1) == (slice(5, 20), slice(4, 26), slice(7, 34))
    assert window_v2(balls, keep_share=0.9) == window_v2(balls)


def test_window_joins_voxels_that_touch_by_a_corner():
    p = torch.zeros(8, 8, 8)
    p[2, 2, 2] = p[3, 3, 3] = p[6, 6, 6] = 1
    assert window_v2(p, margin=(0, 0)) == (slice(2, 4),) * 3


def test_window_stays_within_the_volume():
    p = torch.zeros(6, 7, 8)
    p[0, 3, 7] = 1
    assert window_v2(p) == (slice(0, 4), slice(1, 7), slice(5, 8))


@pytest.mark.parametrize("find", [window_v1, window_v2])
def test_window_of_nothing_is_the_whole_volume(find):
    p = torch.full((8, 12, 16), 1.0 if find is window_v1 else 0.0)
    assert find(p) == (slice(0, 8), slice(0, 12), slice(0, 16))


@pytest.mark.parametrize("call", [
    lambda: attention_map(torch.zeros(1, 2, 8, 8, 8)), lambda: window_v1(torch.zeros(1, 8, 8, 8)),
    lambda: window_v2(torch.zeros(1, 8, 8, 8)),
])  # fmt: skip
def test_wrong_number_of_axes_is_refused(call):
    with pytest.raises(GeometryMismatch, match=r"not (in )?\(1, "):
        call()

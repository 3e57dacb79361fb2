import json
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from napari_fmseg.core.errors import InvalidRecipe
from napari_fmseg.core.events import Progress
from napari_fmseg.pipelines import sliding_window
from napari_fmseg.pipelines.sliding_window import (
    gaussian_importance,
    mirror_axes,
    predict_windows,
    window_starts,
)


def published_weights(window):
    """Return the weights of the published code: they peak at the voxel n // 2, half a voxel beside an even middle."""
    along = []
    for n in window:
        reach = int(n / 2 + 0.5)  # the published filter ends at four standard deviations
        whole = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=torch.float64) / (n / 8)) ** 2)
        bell = torch.exp(-0.5 * ((torch.arange(n, dtype=torch.float64) - n // 2) / (n / 8)) ** 2)
        along.append(bell / whole.sum())
    z, y, x = along
    return z[:, None, None] * y[:, None] * x


def run(*args, **kwargs):
    """The events and the result."""
    events, work = [], predict_windows(*args, **kwargs)
    while True:
        try:
            events.append(next(work))
        except StopIteration as end:
            return events, end.value


def toy(x):
    """Sees its position in the window: two channels."""
    d, h, w = x.shape[2:]
    r = torch.arange(d)[:, None, None] / d + torch.arange(h)[:, None] / h + torch.arange(w) / w
    return torch.cat([x * r, x.mean((1, 2, 3, 4), keepdim=True) + r[None, None].expand(len(x), 1, -1, -1, -1)], 1)


@pytest.fixture
def published():
    shared = Path(os.environ.get("FMSEG_SHARED", Path(__file__).parents[2].parent / "shared")) / "golden"
    if not shared.is_dir():
        pytest.skip(f"the golden vectors are not beside the project ({shared})")
    with np.load(shared / "misfm_sliding_window.npz") as data:
        return {key: data[key] for key in data.files}


@pytest.mark.real
@pytest.mark.parametrize(("name", "window", "stride", "flips"), [
    ("blended", (8, 12, 16), (4, 6, 8), ""), ("flipped", (8, 12, 16), (4, 6, 8), "yx"),
    ("small_image", (32, 12, 64), (16, 6, 32), ""),
])  # fmt: skip
def test_windows_give_the_published_blend(name, window, stride, flips, published):
    drawn = np.random.Generator(np.random.PCG64(51)).standard_normal((1, 1, 20, 24, 28)).astype(np.float32)
    image = torch.from_numpy(drawn[0])
    seen = [min(w, n) for w, n in zip(window, image.shape[1:], strict=True)]
    _, out = run(
        toy, image, window, flips=mirror_axes(flips), weights=published_weights(seen), batch=3,
        places=window_starts(image.shape[1:], window, stride, repeat=True),
    )  # fmt: skip
    np.testing.assert_allclose(out.numpy(), published[name][0], rtol=1e-5, atol=1e-5)


@pytest.mark.real
def test_weights_and_places_are_the_published_ones(published):
    np.testing.assert_allclose(published_weights((8, 12, 16)).numpy(), published["weights"], rtol=1e-5, atol=1e-9)
    facts = json.loads(str(published["about"]))["window_starts_88_160_256"]
    ours = window_starts((88, 160, 256), facts["window"], facts["stride"], repeat=True)
    assert [list(dict.fromkeys(p[i] for p in ours)) for i in range(3)] == [
        list(dict.fromkeys(starts)) for starts in facts["starts"]
    ]
    assert len(ours) == 36
    assert len(window_starts((88, 160, 256), facts["window"], facts["stride"])) == 12


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("overlap", [0.25, 0.5, 0.7])
def test_windows_are_those_of_monai(overlap, batch):
    image, window = torch.rand(2, 19, 22, 25, generator=torch.Generator().manual_seed(0)), (8, 12, 10)

    def net(x):
        return toy(x[:, :1]) + x[:, 1:]

    events, ours = run(net, image, window, overlap=overlap, batch=batch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inferers = pytest.importorskip("monai.inferers")
        theirs = inferers.sliding_window_inference(image[None], window, batch, net, overlap, mode="gaussian")
    torch.testing.assert_close(ours, theirs[0], rtol=1e-4, atol=1e-5)
    assert events == [Progress("windows", i, len(events)) for i in range(1, len(events) + 1)]


def test_plain_means_of_windows_are_those_of_monai():
    image, window = torch.rand(1, 19, 22, 25, generator=torch.Generator().manual_seed(0)), (8, 12, 10)
    _, ours = run(toy, image, window, overlap=0.5, blend="constant")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inferers = pytest.importorskip("monai.inferers")
        theirs = inferers.sliding_window_inference(image[None], window, 1, toy, 0.5, mode="constant")
    torch.testing.assert_close(ours, theirs[0], rtol=1e-4, atol=1e-5)


def test_sum_is_kept_in_the_computer_where_the_card_is_full(monkeypatch):
    card, size = torch.device("cuda", 0), (10, 10, 10)
    needed = 4 * 1000 * (3 + 1)  # three classes and the sum of the weights, float32
    for free, expected in ((needed, "cpu"), (2 * needed, "cuda")):
        monkeypatch.setattr(sliding_window, "free_memory", lambda _, free=free: free)
        assert sliding_window._gathering(card, size, 3).type == expected


@pytest.mark.gpu
def test_result_is_the_same_wherever_the_sum_is_kept(monkeypatch):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    image = torch.rand(1, 19, 22, 25, generator=torch.Generator().manual_seed(0)).cuda()
    results = []
    for free, kept in ((1 << 40, "cuda"), (1, "cpu")):
        monkeypatch.setattr(sliding_window, "free_memory", lambda _, free=free: free)
        _, out = run(lambda x: torch.cat([x, 2 * x], 1), image, (8, 12, 10), batch=3, flips=mirror_axes("x"))
        assert out.device.type == kept
        results.append(out.cpu())
    torch.testing.assert_close(*results)


def test_no_window_comes_twice():
    places = window_starts((20, 24, 28), (8, 12, 16), (4, 6, 8))
    assert len(places) == len(set(places)) == 4 * 3 * 3


def test_pointwise_network_gives_the_same_in_windows_and_mirrored():
    image = torch.rand(1, 17, 9, 23)
    _, out = run(lambda x: torch.cat([x, 2 * x], 1), image, (8, 16, 8), flips=mirror_axes("zyx"), batch=2)
    torch.testing.assert_close(out, torch.cat([image, 2 * image]))


@pytest.mark.parametrize(("batch", "calls"), [(1, 8), (3, 3), (8, 1)])
def test_mirrored_windows_are_computed_together(batch, calls):
    seen, image = [], torch.rand(1, 7, 6, 5)
    events, out = run(lambda x: seen.append(len(x)) or toy(x), image, (8, 8, 8), flips=mirror_axes("zyx"), batch=batch)
    assert len(seen) == len(events) == calls
    expected = torch.stack([toy(image.flip(axes)[None])[0].flip(axes) for axes in mirror_axes("zyx")]).mean(0)
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize(("window", "step"), [((8, 8, 8), (4, 4, 4)), ((6, 8, 10), (5, 3, 7))])
def test_mirrored_windows_count_as_if_the_image_were_mirrored(window, step):
    image = torch.rand(1, 19, 22, 13)
    places, axes = window_starts(image.shape[1:], window, step), (1, 3)  # the last one of each row is nearer
    _, out = run(toy, image, window, flips=[(), axes], places=places)
    alone, mirrored = (run(toy, x, window, places=places)[1] for x in (image, image.flip(axes)))
    torch.testing.assert_close(out, (alone + mirrored.flip(axes)) / 2)


@pytest.mark.parametrize("kept", [1 << 20, 0])
@pytest.mark.parametrize(("batch", "flips"), [(1, ""), (3, "zx")])
def test_windows_of_pure_air_are_computed_once_with_an_equal_result(batch, flips, kept, monkeypatch):
    random = torch.Generator().manual_seed(0)
    weight = torch.randint(-3, 4, (3, 2, 3, 3, 3), generator=random).float()
    image = torch.randint(0, 9, (2, 40, 16, 16), generator=random).float()
    image[0, 12:] = -1000  # air, which the border of a window shows to the network all the same
    image[1, 12:] = 2

    def count(x):
        seen.append(len(x))
        return torch.nn.functional.conv3d(x, weight, padding=1)  # of whole numbers: no order of sums changes them

    results, counts = [], []
    monkeypatch.setattr(sliding_window, "KEPT_BYTES", kept)
    for rule in (sliding_window.constant_value, lambda window: None):
        monkeypatch.setattr(sliding_window, "constant_value", rule)
        seen: list[int] = []
        with torch.no_grad():
            results.append(run(count, image, (8, 8, 8), flips=mirror_axes(flips), batch=batch)[1])
        counts.append(sum(seen))
    torch.testing.assert_close(*results, rtol=0, atol=0)
    windows = 9 * 3 * 3 * 2 ** len(flips)
    air = 6 * 3 * 3 * 2 ** len(flips)
    assert counts[1] == windows
    if kept:
        assert counts[0] == windows - air + 1


def test_a_window_with_another_value_in_one_voxel_or_channel_is_not_constant():
    window = torch.full((2, 4, 5, 6), 3.0)
    window[1] = 7
    assert sliding_window.constant_value(window) == (3, 7)
    window[1, 2, 2, 2] = 7.5
    assert sliding_window.constant_value(window) is None
    assert sliding_window.constant_value(torch.full((1, 2, 2, 2), torch.nan)) is None


def test_network_that_sees_sides_is_averaged_over_them():
    def ramp(x):
        return torch.arange(x.shape[-1], dtype=torch.float32).expand_as(x)

    _, out = run(ramp, torch.zeros(1, 4, 4, 6), (4, 4, 6), flips=mirror_axes("x"))
    torch.testing.assert_close(out, torch.full_like(out, 2.5))


def test_work_stops_when_nobody_asks_for_more():
    calls = []
    work = predict_windows(lambda x: calls.append(1) or x, torch.zeros(1, 16, 16, 16), (8, 8, 8))
    next(work)
    work.close()
    assert calls == [1]


@pytest.mark.parametrize("window", [(1, 1, 1), (2, 3, 64), (96, 5, 160)])
def test_every_voxel_of_a_window_counts(window):
    for weights in (gaussian_importance(window), published_weights(window)):
        assert weights.shape == window
        assert weights.min() > 0


@pytest.mark.parametrize(("window", "kwargs"), [((8, 8), {}), ((8, 8, 0), {}), ((8, 8, 8), {"overlap": 1}),
                                                ((8, 8, 8), {"batch": 0}), ((8, 8, 8), {"blend": "fog"})])  # fmt: skip
def test_impossible_window_is_refused(window, kwargs):
    with pytest.raises(InvalidRecipe, match=r"three positive sizes|not by 'fog'"):
        run(toy, torch.zeros(1, 8, 8, 8), window, **kwargs)


@pytest.mark.parametrize("axes", ["c", "xx", "zyxz"])
def test_impossible_flip_is_refused(axes):
    with pytest.raises(InvalidRecipe, match="z, y and x"):
        mirror_axes(axes)

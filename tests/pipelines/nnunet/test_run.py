"""The pipeline of imported nnU-Net models against plain arithmetic and, where they are there, nnU-Net's own masks."""

from __future__ import annotations

import itertools
import math
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import binary_fill_holes, gaussian_filter
from skimage.transform import resize

from napari_fmseg.core.errors import InvalidRecipe
from napari_fmseg.core.events import Progress, StageResult, drain
from napari_fmseg.core.resampling import stack_channels
from napari_fmseg.core.volume import Geometry, Volume
from napari_fmseg.datasets.phantom import phantom_ct
from napari_fmseg.explain.gradcam import grad_cam
from napari_fmseg.io import read_volume
from napari_fmseg.models.nnunet import import_nnunet
from napari_fmseg.models.settings import NNUNetSettings, Resampling
from napari_fmseg.models.weights import load_model
from napari_fmseg.pipelines import SegmentOptions, segment
from napari_fmseg.pipelines.executor import InferenceRunner
from napari_fmseg.pipelines.nnunet import windows
from napari_fmseg.pipelines.nnunet.frame import Frame
from napari_fmseg.pipelines.nnunet.labels import LabelWriter
from napari_fmseg.pipelines.nnunet.preprocess import network_input
from napari_fmseg.pipelines.nnunet.resample import resample_image, resample_labels, separate_axis
from napari_fmseg.pipelines.nnunet.windows import importance, predict_planes, window_starts

SPACING = (2.0, 1.5, 1.5)
CPU = SegmentOptions(device="cpu")


@pytest.fixture(scope="module")
def ct() -> Volume:
    volume, _ = phantom_ct(2, spacing=(7.0, 5.0, 5.0), shape=(26, 34, 30))
    data = volume.data.copy()
    data[:3] = 0  # cropped away
    affine = np.diag((2.5, 1.25, 1.75, 1.0))
    affine[:3, :3] *= [[1, 1, 1], [1, -1, 1], [1, 1, 1]]  # y runs to anterior
    return Volume(data, Geometry(data.shape, affine))


@pytest.fixture
def toy(nnunet_results, tmp_path):
    return load_model(import_nnunet(nnunet_results(tmp_path), tmp_path / "models").cards[0], device="cpu")


def plain_logits(net, image, window, mirror):
    """Blend all windows of an image in float64, as nnU-Net's paper and documents describe it."""
    bell = np.zeros(window)
    bell[tuple(n // 2 for n in window)] = 1
    bell = gaussian_filter(bell, [n / 8 for n in window], mode="constant")
    weights = torch.from_numpy(np.maximum(bell / bell.max(), bell[bell > 0].min()))
    missing = [max(0, w - n) for w, n in zip(window, image.shape[1:], strict=True)]
    pads = [(n // 2, n - n // 2) for n in missing]
    padded = torch.from_numpy(np.pad(image, [(0, 0), *pads]))
    starts = []
    for n, w in zip(padded.shape[1:], window, strict=False):
        count = math.ceil((n - w) / (w / 2)) + 1
        starts.append([round(i * (n - w) / max(1, count - 1)) for i in range(count)])
    total, covered = 0, torch.zeros(padded.shape[1:], dtype=torch.float64)
    for place in itertools.product(*starts):
        box = tuple(slice(a, a + w) for a, w in zip(place, window, strict=False))
        subsets = [axes for k in range(len(mirror) + 1) for axes in itertools.combinations(mirror, k)]
        mean = 0
        for axes in subsets:
            turned = [axis + 2 for axis in axes]
            mean = mean + net(padded[(slice(None), *box)][None].flip(turned)).flip(turned)[0].double() / len(subsets)
        if isinstance(total, int):
            total = torch.zeros((len(mean), *padded.shape[1:]), dtype=torch.float64)
        total[(slice(None), *box)] += mean * weights
        covered[box] += weights
    inner = tuple(slice(low, low + n) for (low, _), n in zip(pads, image.shape[1:], strict=False))
    return (total / covered)[(slice(None), *inner)].numpy()


@pytest.mark.parametrize("mirror", [True, False])
def test_mask_is_that_of_the_published_arithmetic(mirror, toy, ct):
    inside = np.where(ct.data.any((1, 2)))[0]
    box = slice(inside[0], inside[-1] + 1)
    part = ct.data[box].astype(np.float64)
    grid = [round(2.5 / 2.0 * part.shape[0]), round(1.25 / 1.5 * part.shape[1]), round(1.75 / 1.5 * part.shape[2])]
    part = (np.clip(part, -200, 300) - 40) / 120
    image = resize(part, grid, order=3, mode="edge", anti_aliasing=False).astype(np.float32)
    with torch.no_grad():
        logits = plain_logits(toy.nets["windows"], image[None], (16, 16, 16), (0, 1, 2) if mirror else ())
    there = [resize(one, ct.data[box].shape, order=1, mode="edge", anti_aliasing=False) for one in logits]
    expected = np.zeros(ct.data.shape, np.uint8)
    expected[box] = np.argmax(there, 0)
    options = SegmentOptions(device="cpu", mirror=mirror)
    found = drain(segment(ct, toy, options))
    assert len(np.unique(expected)) == 3
    assert (found.data == expected).mean() >= 0.999
    assert found.geometry == ct.geometry
    assert found.names == {1: "liver", 2: "kidneys"}


def test_fast_mode_gives_nearly_the_same_mask(toy, ct):
    one, other = (
        drain(segment(ct, toy, SegmentOptions(device="cpu", mode=mode, mirror=False))).data
        for mode in ("exact", "fast")
    )
    assert (one == other).mean() > 0.95  # of an untrained network, whose logits are nearly equal
    with pytest.raises(InvalidRecipe, match="exact, fast"):
        SegmentOptions(mode="slow")


def test_stage_of_windows_lies_on_the_patient_and_progress_counts_every_window(toy, ct):
    events = list(segment(ct, toy, SegmentOptions(device="cpu", mirror=False)))
    done = [event for event in events if isinstance(event, Progress)]
    assert [event.done for event in done] == list(range(1, done[0].total + 1))
    stages = {event.stage: event.output for event in events if isinstance(event, StageResult)}
    assert list(stages) == ["windows", "labels"]
    small, large = stages["windows"].geometry, stages["labels"].geometry
    np.testing.assert_allclose(small.direction, large.direction)
    place = np.argwhere(stages["labels"].data == 1).mean(0)
    same = np.argwhere(stages["windows"].data == 1).mean(0)
    np.testing.assert_allclose(large.place(place), small.place(same), atol=3)


def test_a_run_ends_between_two_windows_when_it_is_cancelled(toy, ct):
    events = segment(ct, toy, CPU)
    assert isinstance(next(events), Progress)
    events.close()
    assert list(events) == []


def test_folds_are_averaged_and_transposes_undone(nnunet_plans, nnunet_results, tmp_path, ct):
    plans = nnunet_plans((16, 16, 16), (1.5, 2.0, 1.5)) | {"transpose_forward": [1, 0, 2]}
    folder = nnunet_results(tmp_path / "turned", plans, folds=2)
    turned = load_model(import_nnunet(folder, tmp_path / "a").cards[0], device="cpu")
    order = (1, 0, 2)
    flat = nnunet_results(tmp_path / "flat", nnunet_plans((16, 16, 16), (1.5, 2.0, 1.5)), folds=2)
    plain = load_model(import_nnunet(flat, tmp_path / "b").cards[0], device="cpu")
    swapped = Geometry([ct.data.shape[i] for i in order], ct.geometry.affine[:, [*order, 3]])
    options = SegmentOptions(device="cpu", mirror=False)
    one = drain(segment(ct, turned, options)).data
    other = drain(segment(Volume(ct.data.transpose(order), swapped), plain, options)).data
    np.testing.assert_array_equal(one, other.transpose(order))
    first = nnunet_results(tmp_path / "single", plans)
    alone = load_model(import_nnunet(first, tmp_path / "c").cards[0], device="cpu")
    assert (drain(segment(ct, alone, options)).data != one).any()


def test_the_order_of_the_file_matters_or_not_as_the_model_says(nnunet_plans, nnunet_results, tmp_path, ct):
    flipped = Volume(ct.data[:, ::-1], Frame((ct.geometry), (0, 1, 2), (1,), tuple(
        slice(0, n) for n in ct.geometry.shape), SPACING).network_geometry)  # fmt: skip
    same = {}
    for reader in ("SimpleITKIO", "NibabelIOWithReorient"):
        plans = nnunet_plans((16, 16, 16), SPACING) | {"image_reader_writer": reader}
        card = import_nnunet(nnunet_results(tmp_path / reader, plans), tmp_path / "m", replace=True).cards[0]
        model, options = load_model(card, device="cpu"), SegmentOptions(device="cpu", mirror=False)
        one, other = (drain(segment(volume, model, options)).data for volume in (ct, flipped))
        same[reader] = bool((one == other[:, ::-1]).all())
    assert same == {"SimpleITKIO": False, "NibabelIOWithReorient": True}


def test_grad_cam_looks_at_the_window_around_a_point(toy, ct):
    point = tuple(int(i) for i in np.argwhere(drain(segment(ct, toy, CPU)).data == 1)[0])
    *_, last = grad_cam(ct, toy, "liver", point=point)
    assert last.output.geometry.shape == (16, 16, 16)
    inside = np.linalg.inv(last.output.geometry.affine) @ [*ct.geometry.place(point), 1]
    assert all(-1 < i < 16 for i in inside[:3])


def test_a_small_volume_is_padded_and_an_empty_one_gives_no_error(toy):
    small = Volume(np.ones((3, 5, 4), np.int16) * 50, Geometry.from_spacing((3, 5, 4), SPACING))
    assert drain(segment(small, toy, CPU)).data.shape == (3, 5, 4)
    empty = Volume(np.zeros((20, 18, 18), np.int16), Geometry.from_spacing((20, 18, 18), SPACING))
    assert drain(segment(empty, toy, CPU)).data.shape == (20, 18, 18)


@pytest.mark.parametrize("shape", [(9, 14, 11), (5, 8, 20), (7, 9, 13)])
@pytest.mark.parametrize("order", [1, 3])
def test_splines_are_those_of_scikit_image(shape, order):
    image = np.random.default_rng(0).normal(size=(7, 9, 13)).astype(np.float32)
    rule = Resampling(order=order, separate="never")
    found = resample_image(torch.from_numpy(image), shape, rule, (1, 1, 1), (1, 1, 1)).numpy()
    expected = resize(image.astype(np.float64), shape, order=order, mode="edge", anti_aliasing=False, clip=True)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_thick_axis_is_resampled_by_itself_to_the_nearest_slice():
    image = np.random.default_rng(0).normal(size=(4, 9, 13)).astype(np.float32)
    found = resample_image(torch.from_numpy(image), (7, 11, 10), Resampling(order=3), (8, 1, 1), (5, 1, 1)).numpy()
    slices = [resize(one.astype(np.float64), (11, 10), order=3, mode="edge", anti_aliasing=False) for one in image]
    nearest = [min(3, int(4 / 7 * (k + 0.5))) for k in range(7)]
    np.testing.assert_allclose(found, np.stack(slices)[nearest], atol=1e-5)


@pytest.mark.parametrize(("separate", "current", "new", "axis"), [
    ("auto", (5, 1, 1), (1, 1, 1), 0),
    ("auto", (3, 1, 1), (1, 1, 1), None),
    ("auto", (1, 1, 1), (1, 1, 4), 2),
    ("auto", (4, 4, 1), (1, 1, 1), None),
    ("always", (1, 2, 1), (1, 1, 1), 1),
    ("always", (1, 1, 1), (1, 1, 2), None),
    ("never", (9, 1, 1), (1, 1, 1), None),
])  # fmt: skip
def test_axis_that_is_resampled_by_itself_follows_the_published_rule(separate, current, new, axis):
    assert separate_axis(Resampling(separate=separate), current, new) == axis


def test_labels_are_resampled_by_the_largest_share():
    labels = torch.from_numpy(np.random.default_rng(1).integers(-1, 3, (6, 7, 8)).astype(np.int16))
    found = resample_labels(labels, (9, 7, 11), Resampling(), (1, 1, 1), (1, 1, 1)).numpy()
    values = np.unique(labels)
    shares = [resize((labels.numpy() == v).astype(float), (9, 7, 11), order=1, mode="edge", anti_aliasing=False)
              for v in values]  # fmt: skip
    ranked = np.sort(shares, 0)
    clear = ranked[-1] - ranked[-2] > 1e-6  # equal shares have a rule of their own
    np.testing.assert_array_equal(found[clear], values[np.argmax(shares, 0)][clear])


def test_window_starts_are_spread_evenly_and_cover_everything():
    assert window_starts(50, 32, 0.5) == [0, 9, 18]
    assert window_starts(32, 32, 0.5) == [0]
    assert window_starts(5, 1, 0.5) == [0, 1, 2, 3, 4]
    for n, w, overlap in itertools.product((33, 64, 101), (16, 32), (0.0, 0.25, 0.5)):
        starts = window_starts(n, w, overlap)
        assert starts[-1] + w == n
        assert max(np.diff(starts)) <= w * (1 - overlap) + 1


@pytest.mark.parametrize("mirror", [(), (0, 2)])
def test_planes_of_blended_logits_come_in_order_and_once(mirror):
    image = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 37, 20, 11)).astype(np.float32))

    def call(x, take):
        for first in range(0, 16, 5):  # as they come: some planes at a time
            planes = slice(first, min(16, first + 5))
            take(planes, torch.cat([x, -x], 1)[0, :, planes])

    found = [event for event in predict_planes([call], image, (16, 16, 16), 2, mirror=mirror)
             if not isinstance(event, Progress)]  # fmt: skip
    assert [number for number, _ in found] == np.cumsum([0, *(p.shape[1] for _, p in found)])[:-1].tolist()
    whole = torch.cat([planes for _, planes in found], 1).float()
    difference = (whole - torch.cat([image, -image])).abs()
    assert difference.max() < 0.5  # in corners that few windows see, where float16 has no more digits
    assert (difference < 0.01).float().mean() > 0.99
    assert importance((16, 16, 16)).max() == 10
    assert importance((16, 16, 16)).min() > 0


def test_windows_of_pure_air_are_computed_once_with_an_equal_mask(toy, ct, monkeypatch):
    wide = np.full((20, 34, 80), -1000, np.int16)
    wide[:, :, :30] = np.where(ct.data == 0, -1000, ct.data)[3:23]
    volume = Volume(wide, Geometry.from_spacing(wide.shape, (2.5, 1.25, 1.75)))  # the network's grid is another
    calls, stream = [], InferenceRunner.stream

    def counted(engine, *given):
        calls.append(1)
        stream(engine, *given)

    monkeypatch.setattr(InferenceRunner, "stream", counted)
    masks, counts = [], []
    for kept in (windows.KEPT_BYTES, 0):
        monkeypatch.setattr(windows, "KEPT_BYTES", kept)
        calls.clear()
        masks.append(drain(segment(volume, toy, SegmentOptions(device="cpu", mirror=False))).data)
        counts.append(len(calls))
    np.testing.assert_array_equal(*masks)
    assert len(np.unique(masks[0])) == 3
    assert counts[0] < 0.7 * counts[1]


def test_logits_of_pure_air_are_the_same_in_mirrored_windows(monkeypatch):
    image, calls = torch.randn(1, 8, 8, 40, generator=torch.manual_seed(0)), []
    image[..., 12:] = -3

    def call(x, take):
        calls.append(1)
        take(slice(0, 8), torch.cat([x, x * torch.arange(8)], 1)[0])  # not the same after mirroring

    found, counts = [], []
    for kept in (windows.KEPT_BYTES, 0):
        monkeypatch.setattr(windows, "KEPT_BYTES", kept)
        calls.clear()
        events = predict_planes([call], image, (8, 8, 8), 2, mirror=(0, 2))
        found.append(torch.cat([event[1] for event in events if not isinstance(event, Progress)], 1))
        counts.append(len(calls))
    torch.testing.assert_close(*found, rtol=0, atol=0)
    assert counts == [4 * 4, 9 * 4]  # windows from 0, 4, 8, and one of those from 12 to 32


@pytest.mark.parametrize("shape", [(20, 25, 31), (6, 9, 7), (11, 12, 13), (11, 20, 13)])
@pytest.mark.parametrize("current", [(1, 1, 1), (5, 1, 1)])
def test_labels_from_a_few_planes_at_a_time_are_those_of_the_whole(shape, current):
    blobs = F.interpolate(torch.randn(1, 4, 3, 4, 4, generator=torch.manual_seed(0)), (11, 12, 13), mode="trilinear")
    logits, settings = blobs[0], NNUNetSettings()
    found = np.full(shape, 99, np.uint8)
    writer = LabelWriter(found, logits.shape[1:], settings, current, (1, 1, 1), np.arange(4, dtype=np.uint8))
    for first, n in ((0, 3), (3, 1), (4, 5), (9, 2)):
        writer.write(first, logits[:, first : first + n])
    rule = Resampling()
    whole = torch.stack([resample_image(one, shape, rule, current, (1, 1, 1)) for one in logits])
    two = whole.sort(0).values
    clear = (two[-1] - two[-2] > 1e-4).numpy()
    np.testing.assert_array_equal(found[clear], whole.argmax(0).numpy()[clear])
    assert clear.mean() > 0.99


def test_normalisation_within_the_mask_leaves_the_outside_alone():
    rng = np.random.default_rng(0)
    image = np.zeros((8, 9, 10), np.float32)
    image[1:7, 1:8, 1:9] = rng.normal(200, 30, (6, 7, 8))
    image[3:5, 3:5, 3:5] = 0  # a hole belongs to the inside
    settings = NNUNetSettings(spacing_mm=(1, 1, 1), masked=(True,))
    volume = Volume(image, Geometry.from_spacing(image.shape))
    from napari_fmseg.models.card import Intensity

    found = network_input(volume, Frame.of(volume, settings), settings, Intensity("zscore")).numpy()[0]
    box = image[1:7, 1:8, 1:9]
    inside = binary_fill_holes(box != 0)
    assert found.shape == box.shape
    np.testing.assert_allclose(found[inside], (box[inside] - box[inside].mean()) / box[inside].std(), atol=1e-5)


# --- nnU-Net's own masks ---

GOLDEN = [
    ("plain_mr", "3d_fullres", "fold_0"), ("plain_mr", "3d_fullres", "folds_0_1"), ("plain_mr", "3d_lowres", "lowres"),
    ("plain_mr", "3d_cascade_fullres", "cascade"), ("old_plans", "3d_fullres", "fold_0"),
    ("resenc_ct", "3d_fullres", "fold_0"), ("regions_mr", "3d_fullres", "fold_0"), ("twod_mr", "2d", "fold_0"),
    ("ignore_transposed", "3d_fullres", "fold_0"),
]  # fmt: skip


def copied(source: Path, target: Path) -> Path:
    """Copy a folder that may be read-only."""
    for file in source.rglob("*"):
        if file.is_file():
            there = target / file.relative_to(source)
            there.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, there)
    return target


@pytest.fixture
def golden(golden_shared, tmp_path):
    """Return a function that imports a model of nnU-Net's and gives its own masks."""

    def make(name, configuration, expected):
        shared = golden_shared / "nnunet"
        home = shared / ("plain_mr" if name == "old_plans" else name)
        (source,) = home.glob(f"nnU*__{configuration}")
        place = tmp_path / "results" / source.name
        if name == "old_plans" or expected == "fold_0":
            copied(source / "fold_0", place / "fold_0")
        else:
            copied(source, place)
        plans = next((shared / name).glob("nnU*")) if name == "old_plans" else source
        for file in ("plans.json", "dataset.json"):
            shutil.copyfile(plans / file, place / file)
        if expected == "cascade":
            copied(next(home.glob("nnU*__3d_lowres")), place.parent / next(home.glob("nnU*__3d_lowres")).name)
        card = import_nnunet(place, tmp_path / "models").cards[0]
        return load_model(card, device="cpu"), home

    return make


def read_case(home: Path, case: str) -> Volume:
    volumes = [read_volume(path) for path in sorted((home / "input").glob(f"{case}_0*.nii.gz"))]
    return volumes[0] if len(volumes) == 1 else stack_channels(volumes)


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "configuration", "expected", "kind"),
    [
        pytest.param(*case, kind, marks=pytest.mark.slow if kind == "tta" else ())
        for case in GOLDEN
        for kind in ("notta", "tta")
        if kind == "tta" or case[2] not in ("lowres", "cascade")  # of these only mirrored masks are there
    ],
)
def test_masks_are_those_of_nnunet(name, configuration, expected, kind, golden):
    model, home = golden(name, configuration, expected)
    options = SegmentOptions(device="cpu", mirror=kind == "tta")
    for path in sorted((home / "expected" / expected).glob(f"*__{kind}.nii.gz")):
        want = read_volume(path)
        found = drain(segment(read_case(home, path.name.partition("__")[0]), model, options)).data
        assert found.shape == want.data.shape
        assert (found == want.data).mean() >= 0.999
        for label in np.unique(want.data[want.data > 0]):
            one, other = found == label, want.data == label
            if other.sum() > 200:
                assert 2 * (one & other).sum() / (one.sum() + other.sum()) >= 0.99


def logits_of(model, volume, *, mirror):
    """Return the network's input and its blended logits, whole."""
    settings = NNUNetSettings.of(model.card.settings)
    frame = Frame.of(volume, settings)
    image = network_input(volume, frame, settings, model.card.intensity)
    net = model.nets["windows"]
    with torch.inference_mode():
        call = partial(InferenceRunner(torch.device("cpu"), "float32").stream, net)
        events = predict_planes([call], image, settings.window, net.n_classes, mirror=settings.mirror if mirror else ())
        planes = [event[1] for event in events if not isinstance(event, Progress)]
    return image, torch.cat(planes, 1), frame, settings


@pytest.mark.real
@pytest.mark.parametrize(("name", "case"), [
    ("plain_mr", "hipnative"), ("plain_mr", "hipoblique"), ("resenc_ct", "hn021s6"), ("resenc_ct", "hn034s5"),
])  # fmt: skip
def test_input_and_logits_are_those_of_nnunet(name, case, golden):
    model, home = golden(name, "3d_fullres", "fold_0")
    with np.load(home / "expected" / "fold_0" / f"{case}__notta_stages.npz") as stages:
        image, logits, _, _ = logits_of(model, read_case(home, case), mirror=False)
        np.testing.assert_allclose(image.numpy(), stages["preprocessed"], atol=1e-4)
        difference = np.abs(logits.float().numpy() - stages["logits"].astype(np.float32))
        assert difference.max() < 0.5
        assert (difference < 0.05).mean() > 0.999


@pytest.mark.real
@pytest.mark.parametrize("case", ["hipnative", pytest.param("hipoblique", marks=pytest.mark.slow)])
def test_probabilities_are_those_of_nnunet(case, golden):
    model, home = golden("plain_mr", "3d_fullres", "fold_0")
    volume = read_case(home, case)
    _, logits, frame, settings = logits_of(model, volume, mirror=True)
    spacing = frame.grid_spacing(settings)
    there = [resample_image(one.float(), frame.shape, settings.logits, spacing, frame.spacing) for one in logits]
    found = torch.stack(there).softmax(0).numpy()
    with np.load(home / "expected" / "fold_0" / f"{case}__tta_probabilities.npz") as stored:
        want = stored["probabilities"].astype(np.float32)
    assert (np.abs(found - want) < 0.02).mean() >= 0.999


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "configuration"),
    [("plain_mr", "3d_fullres"), ("resenc_ct", "3d_fullres"), ("regions_mr", "3d_fullres"), ("twod_mr", "2d"),
     ("ignore_transposed", "3d_fullres")],
)  # fmt: skip
def test_fast_mode_of_a_trained_model_agrees_with_exact(name, configuration, golden):
    model, home = golden(name, configuration, "fold_0")
    for image in sorted((home / "input").glob("*_0000.nii.gz")):
        volume = read_case(home, image.name.removesuffix("_0000.nii.gz"))
        one, other = (
            drain(segment(volume, model, SegmentOptions(device="cpu", mode=mode, mirror=False))).data > 0
            for mode in ("exact", "fast")
        )
        assert 2 * (one & other).sum() / (one.sum() + other.sum()) >= 0.998


@pytest.mark.real
def test_the_zip_that_nnunet_exports_holds_the_same_model(golden, golden_shared, tmp_path):
    model, _ = golden("plain_mr", "3d_fullres", "fold_0")
    zipped = import_nnunet(golden_shared / "nnunet" / "export" / "plain_mr_fold_0.zip", tmp_path / "zip").cards[0]
    assert zipped.sha256 == model.card.sha256
    assert zipped.settings == model.card.settings

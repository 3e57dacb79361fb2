"""Coarse, then fine: everything lies where it is in the patient, on any grid, whatever the networks are."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn

from napari_fmseg.cli.main import main
from napari_fmseg.core.errors import InvalidRecipe, UnknownModel
from napari_fmseg.core.events import Progress, StageResult, Warned, drain
from napari_fmseg.core.volume import Geometry, LabelMap, Volume
from napari_fmseg.io import read_labels, write_volume
from napari_fmseg.models.card import Intensity, ModelCard, NetSpec
from napari_fmseg.models.settings import CoarseFineSettings
from napari_fmseg.models.weights import Model, load_model, save_model
from napari_fmseg.nets import build
from napari_fmseg.pipelines import SegmentOptions, executor, segment, stages_of
from napari_fmseg.pipelines.coarse_fine import box_around
from napari_fmseg.pipelines.label_upsampling import label_rule_for
from napari_fmseg.pipelines.postprocess import keep_largest_components
from napari_fmseg.pipelines.slab_reader import SlabReader

FLOAT = SegmentOptions(precision="float32")
LEVELS = (0.35, 0.75)  # between the intensities of background 0.1, first class 0.6, second class 0.9


class Levels(nn.Module):
    """A network that tells classes by their intensity: class i is brighter than `levels[i - 1]`."""

    def __init__(self, levels=LEVELS, activation="sigmoid"):
        super().__init__()
        self.activation = activation
        edges = torch.tensor([*levels, 9.0])
        self.low, self.high = edges[:-1, None, None, None], edges[1:, None, None, None]
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        x = x[:, :1].float()
        scores = 20 * torch.minimum(x - self.low.to(x), self.high.to(x) - x)
        if self.activation == "sigmoid":
            return scores
        return torch.cat([torch.zeros_like(scores[:, :1]), scores], 1)


def model_of(coarse=None, fine=None, intensity=None, channels=("image",), **settings):
    card = ModelCard(
        name="two", title="Two", pipeline="coarse_fine", nets={"coarse": NetSpec("any"), "fine": NetSpec("any")},
        labels={1: "organ", 2: "stone"}, channels=channels, intensity=intensity or Intensity("window", 0.0, 1.0),
        settings={"coarse_size": (16, 24, 24), "fine_size": (32, 40, 40), "margin_mm": 8.0, **settings},
    )  # fmt: skip
    nets = {"coarse": coarse or Levels(), "fine": fine or Levels()}
    return Model(card, nets, torch.device("cpu"))


def volume_of(labels, geometry):
    image = np.choose(labels, [0.1, 0.6, 0.9]).astype(np.float32)
    return Volume(image, geometry)


def ball(shape, centre, radius_mm, spacing):
    index = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1)
    return (((index - centre) * spacing) ** 2).sum(-1) < radius_mm**2


def dice(a, b):
    return 2 * np.logical_and(a, b).sum() / (a.sum() + b.sum())


def results(events):
    return {event.stage: event for event in events if isinstance(event, StageResult)}


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_members_of_an_ensemble_are_averaged_in_both_stages(activation):
    """Members that see all, see the stones only, and see nothing: only the stones have two votes of three."""
    geometry = Geometry.from_spacing((16, 24, 24), (2.0, 2.0, 2.0))
    labels = np.zeros(geometry.shape, np.uint8)
    labels[4:12, 4:20, 4:20], labels[6:10, 8:14, 8:14] = 1, 2
    members = [Levels(levels, activation) for levels in ((0.35, 0.75), (0.74, 0.75), (3.0, 4.0))]
    one = model_of(coarse_size=geometry.shape, fine_size=geometry.shape, margin_mm=100.0)
    nets = {f"{stage}{name}": net for stage in ("coarse", "fine")
            for name, net in zip(("", "-2", "-3"), members, strict=True)}  # fmt: skip
    card = dataclasses.replace(one.card, nets={name: NetSpec("any") for name in nets})
    found = drain(segment(volume_of(labels, geometry), Model(card, nets, one.device), FLOAT))
    assert stages_of(card) == ("coarse", "fine")
    assert np.array_equal(found.data == 2, labels == 2)
    assert not (found.data == 1).any()


# --- places, against a plain and slow reference ------------------------------------------------------------------


def triangle(n_in, n_out, first, last):
    """Weights (n_out, n_in) of linear, anti-aliased reading, written as a loop over voxels."""
    step = (last - first) / n_out
    out = np.zeros((n_out, n_in))
    for j in range(n_out):
        centre = min(max(first + (j + 0.5) * step - 0.5, first), last - 1)
        for i in range(first, last):
            out[j, i] = max(0.0, 1 - abs(i - centre) / max(1.0, step))
        out[j] /= out[j].sum()
    return out


def read_plainly(image, box, size):
    for axis, (s, n) in enumerate(zip(box, size, strict=True)):
        image = np.moveaxis(np.tensordot(triangle(image.shape[axis], n, s.start, s.stop), image, (1, axis)), 0, axis)
    return image


def segment_plainly(volume, levels, settings):
    """The whole pipeline in float64, everything at once at the native size; nearest orientation by brute force."""
    best = max(
        ((order, flips) for order in np.stack(np.meshgrid(*[range(3)] * 3), -1).reshape(-1, 3) if len(set(order)) == 3
         for flips in np.stack(np.meshgrid(*[(1, -1)] * 3), -1).reshape(-1, 3)),
        key=lambda way: sum(volume.geometry.direction[p, way[0][p]] * way[1][p] for p in range(3)),
    )  # fmt: skip
    order, flips = best

    def turned(a):
        return a.transpose(order)[tuple(slice(None, None, f) for f in flips)]

    image = turned(volume.data).astype(float)
    spacing = np.array(volume.geometry.spacing)[list(order)]
    edges = [*levels, 9.0]

    def scores_in(box, size):
        x = np.clip(read_plainly(image, box, size), 0, 1)
        return np.stack([20 * np.minimum(x - edges[i], edges[i + 1] - x) for i in range(len(levels))])

    def choose(s):
        return np.where(s.max(0) >= 0, s.argmax(0) + 1, 0)

    box = tuple(slice(0, n) for n in image.shape)
    seen = choose(scores_in(box, settings.coarse_size))
    if seen.any():
        bounds = []
        for axis, n in enumerate(image.shape):
            hits = [i for i in range(settings.coarse_size[axis]) if seen.take(i, axis).any()]
            scale, margin = n / settings.coarse_size[axis], settings.margin_mm / spacing[axis]
            low = np.floor(np.round(hits[0] * scale - margin, 6))
            high = np.ceil(np.round((hits[-1] + 1) * scale + margin, 6))
            bounds.append(slice(int(max(0, low)), int(min(n, high))))
        box = tuple(bounds)
    scores = scores_in(box, settings.fine_size)
    native = np.stack([
        read_plainly(s, [slice(0, n) for n in s.shape], [b.stop - b.start for b in box]) for s in scores
    ])  # fmt: skip
    out = np.zeros(volume.data.shape, np.uint8)
    turned(out)[box] = choose(native)
    return out


def oblique():
    a, b = np.deg2rad(17), np.deg2rad(-9)
    about_z = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    return about_z @ about_y


PLACES = {
    "straight": (np.eye(3), (2.0, 1.0, 1.0), (30, 52, 57), (14, 27, 20)),
    "flipped": (np.diag([-1, 1, -1]), (2.0, 1.0, 1.0), (30, 52, 57), (14, 27, 20)),
    "permuted": (np.eye(3)[[1, 2, 0]], (1.0, 2.0, 1.5), (52, 30, 41), (20, 14, 21)),
    "permuted and flipped": (-np.eye(3)[[2, 0, 1]], (1.0, 1.0, 2.0), (50, 52, 31), (20, 24, 12)),
    "oblique": (oblique(), (2.0, 1.0, 1.0), (30, 52, 57), (14, 27, 20)),
    "oblique and permuted": (oblique() @ np.eye(3)[[1, 2, 0]], (1.0, 2.0, 1.5), (52, 30, 41), (20, 14, 21)),
    "thick slices": (np.eye(3), (5.0, 0.8, 0.8), (14, 70, 66), (6, 37, 24)),
    "at the first corner": (np.eye(3), (2.0, 1.0, 1.0), (30, 52, 57), (0, 0, 0)),
    "at the last corner": (np.eye(3), (2.0, 1.0, 1.0), (30, 52, 57), (29, 51, 56)),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_labels_are_those_of_a_slow_reference(place, activation):
    direction, spacing, shape, centre = PLACES[place]
    truth = ball(shape, centre, 10, spacing).astype(np.uint8)
    truth[ball(shape, centre, 4, spacing)] = 2
    volume = volume_of(truth, Geometry.from_spacing(shape, spacing, (50.0, -20.0, 7.0), direction))
    model = model_of(Levels(activation=activation), Levels(activation=activation))
    events = list(segment(volume, model, FLOAT))
    found = drain(events)
    expected = segment_plainly(volume, LEVELS, CoarseFineSettings.of(model.card.settings))
    assert found.geometry == volume.geometry
    assert found.data.dtype == np.uint8
    assert (found.data != expected).mean() < 2e-4  # ties of float32
    assert dice(found.data > 0, truth > 0) > 0.9
    seen = results(events)
    assert list(seen) == ["coarse", "fine", "labels"]
    middle = volume.geometry.place(np.argwhere(truth > 0)).mean(0)
    for stage, size in (("coarse", (16, 24, 24)), ("fine", (32, 40, 40))):
        labels = seen[stage].output
        assert labels.data.shape == size
        there = labels.geometry.place(np.argwhere(labels.data > 0)).mean(0)
        assert np.abs(there - middle).max() < max(labels.geometry.spacing) / 2


def test_fine_grid_covers_the_box_and_no_more():
    spacing, shape = (2.0, 1.0, 1.0), (40, 60, 60)
    truth = ball(shape, (20, 30, 25), 9, spacing).astype(np.uint8)
    volume = volume_of(truth, Geometry.from_spacing(shape, spacing))
    fine = results(segment(volume, model_of(), FLOAT))["fine"].output.geometry
    size_mm = np.array(fine.shape) * fine.spacing
    assert (size_mm >= 2 * 9 + 2 * 8 - 2).all()
    assert (size_mm <= 2 * 9 + 2 * 8 + 4 * np.array((40 / 16 * 2, 60 / 24, 60 / 24))).all()


# --- the published example -----------------------------------------------------------------------------------------


def test_published_example_gives_the_published_box_and_one_voxel_that_was_lost():
    geometry = Geometry.from_spacing((120, 512, 512), (2.5, 0.78, 0.78))
    coarse = np.zeros((160, 160, 160), np.uint8)
    coarse[30:111, 40:121, 20:141] = 1  # published: 30..110, 40..120, 20..140, both ends included
    published = []
    for low, high, n, spacing in zip((30, 40, 20), (110, 120, 140), geometry.shape, geometry.spacing, strict=True):
        zoom, margin = n / 160, 20 / spacing
        published.append((max(0, int(int(low * zoom) - margin)), min(n, int(int(high * zoom) + margin))))
    assert published == [(14, 90), (102, 409), (38, 473)]
    ours = [(s.start, s.stop) for s in box_around(coarse, geometry, 20)]
    assert [start for start, _ in ours] == [start for start, _ in published]
    assert [stop for _, stop in ours] == [92, 413, 477]  # a coarse voxel further, rounded outwards
    assert 1 / geometry.resized((160, 160, 160)).voxel_ml == pytest.approx(85.607, abs=1e-3)
    crop = geometry.crop((slice(14, 90), slice(102, 409), slice(38, 473)))
    assert crop.shape == (76, 307, 435)
    assert 2 / crop.resized((192, 192, 192)).voxel_ml == pytest.approx(916.987, abs=1e-3)


def test_box_of_nothing_is_everything():
    geometry = Geometry.from_spacing((7, 8, 9))
    assert box_around(np.zeros((4, 4, 4)), geometry, 5) == (slice(0, 7), slice(0, 8), slice(0, 9))


def test_empty_coarse_mask_looks_at_everything_and_says_so():
    spacing, shape = (2.0, 1.0, 1.0), (30, 52, 57)
    truth = ball(shape, (14, 27, 20), 10, spacing).astype(np.uint8)
    volume = volume_of(truth, Geometry.from_spacing(shape, spacing))
    seen = results(segment(volume, model_of(coarse=Levels((5.0, 6.0))), FLOAT))
    assert "looking at everything" in seen["coarse"].note
    assert seen["fine"].output.geometry.matches(volume.geometry.resized((32, 40, 40)))
    assert dice(seen["labels"].output.data > 0, truth > 0) > 0.9


def test_nothing_in_the_volume_gives_empty_labels():
    volume = Volume(np.full((20, 30, 30), 0.1, np.float32), Geometry.from_spacing((20, 30, 30)))
    seen = results(segment(volume, model_of(), FLOAT))
    assert not seen["labels"].output.data.any()
    assert seen["fine"].note == "Nothing was found."


# --- parts ---------------------------------------------------------------------------------------------------------


def two_balls():
    spacing, shape = (2.0, 1.0, 1.0), (40, 60, 90)
    large, small = ball(shape, (20, 30, 20), 10, spacing), ball(shape, (20, 30, 70), 6, spacing)
    return large, small, volume_of((large | small).astype(np.uint8), Geometry.from_spacing(shape, spacing))


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
@pytest.mark.parametrize("settings", [
    {"coarse_max_components": (1,)}, {"fine_max_components": (1, 2)}, {"fine_min_ml": 1.5},
    {"coarse_min_ml": 1.5, "margin_mm": 3.0},
])  # fmt: skip
def test_smaller_part_is_removed_without_a_trace(settings, activation):
    large, small, volume = two_balls()
    model = model_of(Levels(activation=activation), Levels(activation=activation), **settings)
    found = drain(segment(volume, model, FLOAT)).data
    assert dice(found > 0, large) > 0.9
    assert not found[ndimage.binary_dilation(small, iterations=4)].any()


def test_both_parts_stay_where_the_card_keeps_two():
    large, small, volume = two_balls()
    found = drain(segment(volume, model_of(coarse_max_components=(2, 1), fine_max_components=(2, 1)), FLOAT)).data
    assert dice(found > 0, large | small) > 0.9


def test_kept_parts_are_those_of_a_loop_over_parts():
    rng = np.random.default_rng(0)
    labels = (ndimage.gaussian_filter(rng.random((24, 30, 28)), 1.5) > 0.51) * rng.integers(1, 3, (24, 1, 1))
    labels = labels.astype(np.uint8)
    geometry = Geometry.from_spacing(labels.shape, (2.0, 1.0, 1.0))
    kept = keep_largest_components(LabelMap(labels, geometry), (2, 0), 0.02).data
    expected = np.zeros_like(labels)
    for value, most in ((1, 2), (2, 99)):
        parts, n = ndimage.label(labels == value, np.ones((3, 3, 3)))
        sizes = sorted(((int((parts == i).sum()), -i) for i in range(1, n + 1)), reverse=True)
        for size, number in sizes[:most]:
            if size * 0.002 > 0.02 + 1e-9:
                expected[parts == -number] = value
    assert len(np.unique(expected)) == 3
    assert np.array_equal(kept, expected)


# --- heads, channels, intensities, ways out ------------------------------------------------------------------------


def test_overlapping_classes_go_to_the_most_probable_or_to_the_last():
    scores = torch.tensor([[-1.0, 2.0, 0.5, 3.0], [-2.0, 1.0, 0.7, -1.0]])[:, :, None, None]
    labels = [label_rule_for("sigmoid", CoarseFineSettings(overlap=way))(scores).flatten().tolist()
              for way in ("probable", "last")]  # fmt: skip
    assert labels == [[0, 1, 2, 1], [0, 2, 2, 1]]
    strict = label_rule_for("sigmoid", CoarseFineSettings(threshold=0.8))(scores)  # a logit of 1.386
    assert strict.flatten().tolist() == [0, 1, 0, 1]
    assert label_rule_for("softmax", CoarseFineSettings())(scores).flatten().tolist() == [0, 0, 1, 0]


def test_many_classes_do_not_overflow():
    scores = torch.full((300, 1, 1, 1), -1.0)
    scores[299] = 1
    assert int(label_rule_for("sigmoid", CoarseFineSettings())(scores)) == 300
    assert int(label_rule_for("sigmoid", CoarseFineSettings(overlap="last"))(scores)) == 300


def test_each_input_is_clipped_and_standardised_after_it_was_resized():
    seen = []

    class Looks(Levels):
        def forward(self, x):
            seen.append(x.clone())
            return super().forward(x)

    *_, volume = two_balls()
    volume = Volume((volume.data * 1000).astype(np.int16), volume.geometry)
    model = model_of(Looks(), Looks(), intensity=Intensity("window_zscore", 0, 700))
    list(segment(volume, model, FLOAT))
    for x in seen:
        assert float(x.mean()) == pytest.approx(0, abs=1e-4)
        assert float(x.std(correction=0)) == pytest.approx(1, abs=1e-3)
    box = tuple(slice(0, n) for n in volume.data.shape)
    clipped = np.clip(read_plainly(volume.data.astype(float), box, (16, 24, 24)), 0, 700)
    expected = (clipped - clipped.mean()) / clipped.std()
    assert np.abs(seen[0][0, 0].numpy() - expected).max() < 1e-3


def test_two_channels_reach_both_networks():
    large, _, volume = two_balls()
    other = np.zeros_like(volume.data)
    both = Volume(np.stack([volume.data, other]), volume.geometry)
    found = drain(segment(both, model_of(channels=("a", "b"), fine_max_components=(1,)), FLOAT)).data
    assert dice(found > 0, large) > 0.9


def test_air_is_left_out_of_the_coarse_grid():
    large, small, volume = two_balls()
    seen = results(segment(volume, model_of(crop_above=0.5), FLOAT))
    inside = np.argwhere(large | small)
    size = np.array(seen["coarse"].output.geometry.shape) * seen["coarse"].output.geometry.spacing
    assert np.allclose(size, (np.ptp(inside, axis=0) + 1) * volume.geometry.spacing)
    assert dice(seen["labels"].output.data > 0, large | small) > 0.9


def test_until_coarse_gives_the_coarse_labels_on_the_volume():
    large, small, volume = two_balls()
    model = model_of()
    seen = results(segment(volume, model, dataclasses.replace(FLOAT, until="coarse")))
    assert list(seen) == ["coarse", "labels"]
    assert model.nets["fine"].calls == 0
    assert dice(seen["labels"].output.data > 0, large | small) > 0.8
    assert stages_of(model.card) == ("coarse", "fine")


@pytest.mark.parametrize("settings", [
    {"overlap": "first"}, {"threshold": 1.0}, {"coarse_size": (0, 1, 1)}, {"margin_mm": -1.0},
    {"fine_max_components": (-1,)}, {"grid": 3},
])  # fmt: skip
def test_senseless_settings_are_refused(settings):
    with pytest.raises(UnknownModel, match=next(iter(settings))):
        CoarseFineSettings.of(settings)


def test_registered_networks_of_any_kind_serve_as_coarse_and_fine(tmp_path):
    specs = {
        "coarse": NetSpec("baseunet", {"n_classes": 3, "channels": (2, 2, 4, 4, 4)}),
        "fine": NetSpec("fmunet", {"n_classes": 3, "widths": (2, 4, 4, 4, 4)}),
    }
    torch.manual_seed(0)
    nets = {name: build(spec.network, **spec.kwargs) for name, spec in specs.items()}
    card = dataclasses.replace(
        model_of(coarse_size=(32, 32, 32), fine_size=(32, 32, 32)).card, nets=specs,
        intensity=Intensity("window_zscore", 0.0, 1.0),
    )  # fmt: skip
    model = load_model(save_model(card, nets, tmp_path), device="cpu")
    *_, volume = two_balls()
    seen = results(segment(volume, model, FLOAT))
    assert list(seen) == ["coarse", "fine", "labels"]


def test_command_line_segments_with_such_a_model_and_a_limit(tmp_path, capsys, monkeypatch):
    peaks = itertools.count(1, 1_000_000_000)  # a process that grows and grows
    monkeypatch.setattr(executor, "peak_bytes", lambda: next(peaks))
    kwargs = {"n_classes": 3, "channels": (2, 2, 4, 4, 4)}
    specs = {"coarse": NetSpec("baseunet", kwargs), "fine": NetSpec("baseunet", kwargs)}
    torch.manual_seed(0)
    nets = {name: build(spec.network, **spec.kwargs) for name, spec in specs.items()}
    card = dataclasses.replace(model_of(coarse_size=(32,) * 3, fine_size=(32,) * 3).card, nets=specs)
    save_model(card, nets, tmp_path)
    *_, volume = two_balls()
    image, labels = write_volume(volume, tmp_path / "image.nii.gz"), tmp_path / "labels.nii.gz"
    words = ["segment", str(image), "--model", str(tmp_path / "two.toml"), "--output", str(labels), "--device", "cpu"]
    assert main([*words, "--max-memory-gb", "0.001"]) == 0
    told = capsys.readouterr()
    found = read_labels(labels)
    assert found.geometry.matches(volume.geometry)
    assert np.array_equal(found.data, drain(segment(volume, load_model(tmp_path / "two.toml", device="cpu"))).data)
    assert "0.001 GB allowed" in told.out + told.err


def test_negative_limit_is_refused():
    *_, volume = two_balls()
    with pytest.raises(InvalidRecipe, match="max_memory_gb"):
        list(segment(volume, model_of(), SegmentOptions(max_memory_gb=-1)))


# --- memory --------------------------------------------------------------------------------------------------------


def test_slabs_give_the_bits_of_the_whole_volume_on_the_device():
    rng = np.random.default_rng(1)
    data = np.flip(rng.integers(-1000, 2000, (2, 90, 150, 170)).astype(np.int16), (1, 3))
    box = (slice(3, 88), slice(10, 149), slice(0, 161))
    there, slabwise = SlabReader(data, torch.device("cpu")), SlabReader(data, torch.device("cpu"))
    there._there = torch.from_numpy(data.copy())  # as on a graphics card
    assert there.on_device
    assert not slabwise.on_device
    a, b = there.read(box, (40, 60, 50)), slabwise.read(box, (40, 60, 50))
    assert torch.equal(a, b)
    plain = np.stack([read_plainly(channel.astype(float), box, (40, 60, 50)) for channel in data])
    assert np.abs(a.numpy() - plain).max() < 0.05


class Full(Levels):
    """A network that finds the memory full as often as it is told."""

    def __init__(self, failures):
        super().__init__()
        self.failures = [failures]  # shared by the copies that the engine makes

    def __deepcopy__(self, memo):
        return self

    def forward(self, x):
        if self.failures[0]:
            self.failures[0] -= 1
            raise torch.OutOfMemoryError("full")
        return super().forward(x)


def test_volume_leaves_the_device_before_the_network_does(monkeypatch):
    *_, volume = two_balls()
    expected = drain(segment(volume, model_of(), FLOAT)).data
    monkeypatch.setattr(
        SlabReader, "to_device", lambda self: setattr(self, "_there", torch.from_numpy(self._data.copy())) or 1
    )
    events = list(segment(volume, model_of(coarse=Full(1)), FLOAT))
    said = [event.text for event in events if isinstance(event, Warned)]
    assert len(said) == 1
    assert "slabs" in said[0]
    assert np.array_equal(drain(events).data, expected)


def test_volume_without_room_on_the_device_is_read_in_slabs(monkeypatch):
    *_, volume = two_balls()
    expected = drain(segment(volume, model_of(), FLOAT)).data
    monkeypatch.setattr(SlabReader, "to_device", lambda self: False)
    events = list(segment(volume, model_of(), FLOAT))
    assert any("slabs" in event.text for event in events if isinstance(event, Warned))
    assert np.array_equal(drain(events).data, expected)


def test_progress_reaches_its_end():
    *_, volume = two_balls()
    told = [event for event in segment(volume, model_of(), FLOAT) if isinstance(event, Progress)]
    assert [p.stage for p in told][:2] == ["coarse", "fine"]
    assert told[-1].done == told[-1].total

"""One network in windows: what it finds lies on the patient, on any grid, in any orientation."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from napari_fmseg.core.errors import GeometryMismatch, UnknownModel, UnreadableVolume
from napari_fmseg.core.events import Progress, StageResult, Warned, drain
from napari_fmseg.core.volume import Geometry, Volume
from napari_fmseg.models.card import Intensity, ModelCard, NetSpec
from napari_fmseg.models.fit import find_misfits
from napari_fmseg.models.measures import measure
from napari_fmseg.models.settings import SingleSettings
from napari_fmseg.models.weights import Model, load_model, save_model
from napari_fmseg.nets import build
from napari_fmseg.pipelines import SegmentOptions, segment, stages_of
from napari_fmseg.pipelines.preprocessing import normalise

FLOAT = SegmentOptions(precision="float32")


class Brighter(nn.Module):
    """Logits of one structure: what is brighter than a half."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(1, 2, 1).requires_grad_(False)
        self.conv.weight[:] = torch.tensor([-10.0, 10.0])[:, None, None, None, None]
        self.conv.bias[:] = torch.tensor([5.0, -5.0])

    def forward(self, x):
        return self.conv(x)


def card_of(spec=None, intensity=None, **settings):
    return ModelCard(
        name="one", title="One", pipeline="single", nets={"net": spec or NetSpec("conv")}, labels={1: "organ"},
        intensity=intensity or Intensity("window", 0.0, 1.0), settings={"window": (8, 8, 8), **settings},
    )  # fmt: skip


def model_of(**settings):
    return Model(card_of(**settings), {"net": Brighter().eval()}, torch.device("cpu"))


def volume_of(data, spacing=(2.0, 1.0, 1.5), direction=None):
    return Volume(np.asarray(data, np.float32), Geometry.from_spacing(data.shape, spacing, (5, 6, 7), direction))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_voxels_without_a_number_in_an_array_hide_nothing_and_are_reported(value):
    intensity = Intensity("percentile", 0.0, 100.0)
    model = dataclasses.replace(model_of(), card=card_of(intensity=intensity))
    data = np.zeros((8, 8, 8), np.float32)
    data[2:6, 2:6, 2:6] = 1
    expected = drain(segment(volume_of(data), model, FLOAT)).data
    assert expected.any()
    data[0, 0, :2] = value
    given = data.copy()
    events = list(segment(volume_of(data), model, FLOAT))
    found = expected.copy()
    found[0, 0, :2] = value == np.inf  # the greatest value
    np.testing.assert_array_equal(events[-1].output.data, found)
    assert [event.text for event in events if isinstance(event, Warned) and "2 voxels" in event.text]
    np.testing.assert_array_equal(data, given)  # the caller's array is as it was


def test_an_array_without_any_number_is_refused():
    with pytest.raises(UnreadableVolume, match="no finite number"):
        drain(segment(volume_of(np.full((8, 8, 8), np.nan)), model_of(), FLOAT))


@pytest.fixture
def balls():
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in (12, 19, 21)], indexing="ij"), -1)
    large = np.linalg.norm(grid - np.array([6, 9, 8]), axis=-1) < 4
    small = np.linalg.norm(grid - np.array([3, 3, 17]), axis=-1) < 2
    return large, small


@pytest.mark.parametrize("flips", ["", "yx", "zyx"])
@pytest.mark.parametrize("direction", [None, np.diag([-1, 1, -1]), np.eye(3)[[1, 2, 0]]])
def test_labels_lie_where_the_structure_is(direction, flips, balls):
    large, small = balls
    volume = volume_of(large | small, direction=direction)
    labels = drain(segment(volume, model_of(flips=flips), FLOAT))
    assert labels.geometry.matches(volume.geometry)
    assert np.array_equal(labels.data, large | small)
    assert labels.names == {1: "organ"}


def test_every_group_of_windows_is_told(balls):
    *events, net, labels = segment(volume_of(balls[0]), model_of(batch=4), FLOAT)
    assert isinstance(net, StageResult)
    assert isinstance(labels, StageResult)
    assert (net.stage, labels.stage) == ("net", "labels")
    assert events[0] == Progress("net", 0, 1)
    n = len(events) - 1
    assert events[1:] == [Progress("net", i, n) for i in range(1, n + 1)]
    assert n == 2 * 4 * 5 // 4 + (2 * 4 * 5 % 4 > 0)
    assert stages_of(model_of().card) == ("net",)


@pytest.mark.parametrize(("asked", "calls"), [({"overlap": 0.0}, 2 * 3 * 3), ({"window_batch": 64}, 1)])
def test_user_may_ask_for_other_windows_than_the_card(asked, calls, balls):
    options = dataclasses.replace(FLOAT, **asked)
    events = [e for e in segment(volume_of(balls[0]), model_of(), options) if isinstance(e, Progress)]
    assert len(events) - 1 == calls
    assert np.array_equal(drain(segment(volume_of(balls[0]), model_of(), options)).data, balls[0])


class Sure(nn.Module):
    """Says the same everywhere: logits of background and organ."""

    activation = "softmax"

    def __init__(self, organ):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([0.0, organ]), requires_grad=False)

    def forward(self, x):
        return self.logits[None, :, None, None, None].expand(len(x), 2, *x.shape[2:])


class Overlapping(Sure):
    activation = "sigmoid"

    def forward(self, x):
        return super().forward(x)[:, 1:]


@pytest.mark.parametrize("kind", [Sure, Overlapping])
@pytest.mark.parametrize(("organ", "found"), [((9.0, -1.0, -1.0), True), ((9.0, -3.0, -3.0), False)])
def test_members_of_an_ensemble_vote_by_probability_not_by_logit(kind, organ, found):
    # The means of the logits are all positive; those of the probabilities are 0.51 and 0.36.
    names = ("net", "net-2", "net-3")
    card = dataclasses.replace(card_of(), nets={name: NetSpec("unet3d") for name in names})
    nets = {name: kind(value).eval() for name, value in zip(names, organ, strict=True)}
    labels = drain(segment(volume_of(np.zeros((4, 5, 6))), Model(card, nets, torch.device("cpu")), FLOAT))
    assert labels.data.all() == found
    assert labels.data.any() == found
    assert stages_of(card) == ("net",)


@pytest.mark.parametrize("keep", ["each", "together"])
def test_stray_parts_go_if_the_card_says_so(keep, balls):
    large, small = balls
    labels = drain(segment(volume_of(large | small), model_of(keep_largest=keep), FLOAT))
    assert np.array_equal(labels.data, large)


def test_network_sees_the_spacing_of_the_card(balls):
    volume = volume_of(balls[0])
    _, *_, net, labels = segment(volume, model_of(spacing_mm=(1.0, 1.0, 1.0)), FLOAT)
    assert net.output.geometry.shape == (24, 19, 32)
    assert labels.output.geometry.matches(volume.geometry)
    overlap = 2 * (labels.output.data.astype(bool) & balls[0]).sum() / (labels.output.data.sum() + balls[0].sum())
    assert overlap > 0.95


def test_empty_volume_gives_empty_labels_and_says_so():
    _, *_, net, labels = segment(volume_of(np.zeros((4, 5, 6))), model_of(), FLOAT)
    assert net.note == "Nothing was found."
    assert not labels.output.data.any()


def test_zscores_have_mean_0_and_deviation_1():
    data = torch.rand(2, 6, 7, 8) * torch.tensor([3.0, 50.0])[:, None, None, None] + 9
    out = normalise(data, Intensity("zscore"))
    for channel, source in zip(out.numpy(), data.numpy(), strict=True):
        np.testing.assert_allclose(channel, (source - source.mean()) / (source.std() + 1e-5), rtol=1e-4, atol=1e-4)
    assert not normalise(torch.full((1, 4, 4, 4), 7), Intensity("zscore")).any()


@pytest.mark.parametrize(("network", "kwargs"), [
    ("fmunet", {"widths": [2, 2, 4, 4, 4]}), ("pctnet", {"widths": [2, 2, 4, 4, 4], "heads": [1, 1, 1]}),
])  # fmt: skip
def test_saved_model_of_misfm_segments_a_volume_of_any_size(network, kwargs, tmp_path):
    torch.manual_seed(0)
    spec = NetSpec(network, kwargs)
    card = card_of(spec, Intensity("zscore"), window=(16, 32, 20), flips="x")
    model = load_model(save_model(card, {"net": build(network, **kwargs)}, tmp_path), device="cpu")
    volume = volume_of(np.random.default_rng(0).normal(size=(9, 37, 23)))
    labels = drain(segment(volume, model, FLOAT))
    assert labels.data.shape == volume.geometry.shape
    assert set(np.unique(labels.data)) <= {0, 1}


class Overlapping(nn.Module):
    """Logits of two structures that may overlap: what is bright, and, more surely, what is brightest."""

    activation = "sigmoid"

    def forward(self, x):
        return torch.cat([4 * x - 1, 16 * x - 12], 1)


def test_overlapping_structures_become_the_most_probable_one():
    data = np.zeros((4, 5, 6))
    data[1], data[2] = 0.5, 1.0
    card = dataclasses.replace(card_of(), labels={1: "organ", 2: "tumour"})
    labels = drain(segment(volume_of(data), Model(card, {"net": Overlapping()}, torch.device("cpu")), FLOAT))
    assert [set(plane.ravel()) for plane in labels.data] == [{0}, {1}, {2}, {0}]


class Halving(Brighter):
    """Takes multiples of 8 only."""

    def check(self, x):
        if any(n % 8 for n in x.shape[2:]):
            raise GeometryMismatch("multiples of 8")

    def forward(self, x):
        self.check(x)
        return super().forward(x)


@pytest.mark.parametrize("flips", ["", "zyx"])
def test_volume_that_the_network_refuses_is_filled_up_to_the_window(flips, balls):
    large, small = balls
    volume = volume_of(large | small)  # 12 x 19 x 21
    model = Model(card_of(window=(16, 24, 24), flips=flips), {"net": Halving().eval()}, torch.device("cpu"))
    _, *_, net, labels = segment(volume, model, FLOAT)
    assert np.array_equal(net.output.data, large | small)
    assert np.array_equal(labels.output.data, large | small)


@pytest.mark.parametrize("settings", [
    {"window": (0, 8, 8)}, {"overlap": 1.0}, {"batch": 0}, {"spacing_mm": (1.0, 1.0)}, {"flips": "xx"},
    {"keep_largest": "all"}, {"consensus_grid": (8, 8, 8)},
])  # fmt: skip
def test_settings_that_make_no_sense_are_refused(settings):
    with pytest.raises(UnknownModel, match=next(iter(settings))):
        SingleSettings.of(settings)


def test_wrong_number_of_channels_is_refused():
    volume = Volume(np.zeros((2, 8, 8, 8), np.float32), Geometry.from_spacing((8, 8, 8)))
    with pytest.raises(GeometryMismatch, match="takes 1 channel"):
        drain(segment(volume, model_of(), FLOAT))


@pytest.mark.parametrize("direction", [None, np.diag([-1, 1, -1])])
def test_air_around_the_patient_costs_no_windows_and_changes_nothing(direction, balls):
    data = np.zeros((12, 40, 60))
    data[:, 15:34, 30:51] = 0.2 + 0.8 * (balls[0] | balls[1])
    volume = volume_of(data, direction=direction)
    seen, results = {}, {}
    for crop in (None, 0.1):
        *events, last = segment(volume, model_of(crop_above=crop), FLOAT)
        seen[crop] = max(e.total for e in events if isinstance(e, Progress))
        results[crop] = last.output
    assert seen[0.1] < seen[None] / 3
    assert results[0.1].geometry == volume.geometry
    assert np.array_equal(results[0.1].data, results[None].data)
    assert results[0.1].data.any()


def test_channels_may_have_windows_of_their_own_and_another_unit_is_told(balls):
    own = Intensity(channels=(Intensity("window", -100, 100, unit="HU"), Intensity("window", 0, 10, unit="SUV")))
    data = np.stack([np.full((4, 4, 4), 0.0), np.full((4, 4, 4), 2.5)])
    assert [float(c.mean()) for c in normalise(torch.from_numpy(data), own)] == [0.5, 0.25]
    card = dataclasses.replace(card_of(intensity=own), channels=("CT", "PET"), modality="PET")
    measures = measure(list(data), Geometry.from_spacing((4, 4, 4)), {})

    def told(**meta):
        return [misfit.text for misfit in find_misfits(measures, meta, card)]

    assert told(channel_units=("HU", "SUV"), modality="PT") == []
    (text,) = told(channel_units=("HU", "Bq/ml"))
    assert "channel PET is in Bq/ml" in text
    assert any("does not say its unit" in text for text in told())
    assert any("CT; one was trained on PET" in text for text in told(modality="CT"))
    with pytest.raises(UnknownModel, match="one channel"):
        Intensity(channels=(own,))


def test_a_card_with_windows_for_channels_comes_back_from_its_file(tmp_path):
    own = Intensity(channels=(Intensity("window", -100, 100, unit="HU"), Intensity("window", 0, 10, unit="SUV")))
    card = dataclasses.replace(
        card_of(NetSpec("unet3d", {"in_channels": 2, "n_classes": 2}), own), channels=("CT", "PET")
    )
    save_model(card, {"net": build("unet3d", in_channels=2, n_classes=2)}, tmp_path)
    assert load_model(tmp_path / "one.toml", device="cpu").card.intensity == own

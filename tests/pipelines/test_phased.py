"""The phased pipeline with hand-made networks: every stage lies on the patient, and nothing is lost on the way."""

from __future__ import annotations

import dataclasses
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import nn

from napari_fmseg.core.errors import DeviceMemory, GeometryMismatch, InvalidRecipe, UnknownModel
from napari_fmseg.core.events import Event, Progress, StageResult, Warned, drain
from napari_fmseg.core.resampling_torch import resize, zoom
from napari_fmseg.core.volume import Geometry, LabelMap, Volume
from napari_fmseg.models.card import Intensity, ModelCard, NetSpec
from napari_fmseg.models.weights import Model
from napari_fmseg.nets import build
from napari_fmseg.pipelines import SegmentOptions, phased, segment, slab_reader, stages_of
from napari_fmseg.pipelines.executor import InferenceRunner
from napari_fmseg.pipelines.phased import PhasedSettings, careful_views
from napari_fmseg.pipelines.preprocessing import normalise

FLOAT = SegmentOptions(precision="float32")
SETTINGS = {"consensus_grid": (20, 18, 16), "attention_grid": (18, 20, 22), "window_margin": (1, 1)}
STAGES = ["consensus", "attention map", "attention", "edge", "labels"]


class Nearest(nn.Module):
    """One convolution: the class whose mean intensity is nearest, whatever else is given."""

    activation = "none"

    def __init__(self, means: tuple[float, ...] = (0.0, 1.0), channels: int = 1, sharpness: float = 40.0) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels, len(means), 1).requires_grad_(False)
        for i, mean in enumerate(means):  # -(x - m)² without x², which all classes share
            self.conv.weight[i] = 2 * sharpness * mean / channels
            self.conv.bias[i] = -sharpness * mean**2

    def forward(self, x: torch.Tensor, *beside: torch.Tensor) -> torch.Tensor:
        return self.conv(x).softmax(1)


def model_of(net: nn.Module | None = None, nets: dict[str, nn.Module] | None = None, **facts: Any) -> Model:
    net = net or Nearest()
    nets = nets or {"consensus": net, "attention": net, "edge": net}
    settings = {**SETTINGS, **facts.pop("settings", {})}
    card = ModelCard(
        name="hand-made",
        title="Hand-made",
        pipeline="phased",
        nets={part: NetSpec("conv") for part in nets},
        labels=facts.pop("labels", {1: "organ"}),
        intensity=facts.pop("intensity", Intensity("window", 0.0, 1.0)),
        settings=settings,
        **facts,
    )
    return Model(card, nets, torch.device("cpu"))


def results(events: Any) -> dict[str, StageResult]:
    return {e.stage: e for e in events if isinstance(e, StageResult)}


def turned(degrees: float, axis: tuple[float, float, float]) -> np.ndarray:
    """Rotation matrix about `axis`, by Rodrigues' formula."""
    k = np.array(axis) / np.linalg.norm(axis)
    cross = np.cross(np.eye(3), k)
    angle = np.deg2rad(degrees)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def ball(
    geometry: Geometry, centre_mm: np.ndarray, radii_mm: tuple[float, float, float] = (11, 9, 8), value: float = 1.0
) -> np.ndarray:
    """Ellipsoid along the patient's axes, made from the place of every voxel."""
    places = geometry.place(np.moveaxis(np.indices(geometry.shape), 0, -1))
    return np.float32(value) * ((((places - centre_mm) / radii_mm) ** 2).sum(-1) <= 1)


def centre_of(volume: Volume) -> np.ndarray:
    data = volume.data.astype(float)
    return volume.geometry.place(ndimage.center_of_mass(data > (data.min() + data.max()) / 2))


def square(
    shape: tuple[int, int, int] = (30, 30, 30), at: tuple[float, float, float] = (12, 16, 17), **options: Any
) -> Volume:
    """A ball of radius 5 mm in a volume of 1 mm voxels."""
    geometry = Geometry.from_spacing(shape)
    return Volume(ball(geometry, np.array(at), (5, 5, 5)), geometry, **options)


ORIENTATIONS = {
    "straight": (np.eye(3), (48, 44, 40), (1.5, 1.5, 1.5)),
    "flipped": (np.diag([-1.0, 1.0, -1.0]), (48, 44, 40), (1.5, 1.4, 1.6)),
    "permuted": (np.eye(3)[:, [2, 0, 1]], (48, 44, 40), (1.4, 1.5, 1.6)),
    "oblique": (turned(25, (1, 2, 3)), (48, 44, 40), (1.5, 1.5, 1.5)),
    "oblique, flipped and permuted": (
        turned(20, (3, -1, 2)) @ np.diag([1.0, -1.0, 1.0])[:, [1, 2, 0]],
        (46, 44, 48),
        (1.4, 1.6, 1.5),
    ),
    "5 mm slices": (np.eye(3), (15, 60, 50), (5.0, 1.2, 1.3)),
    "5 mm slices, sagittal, oblique": (turned(-15, (0, 1, 1))[:, [2, 0, 1]], (15, 60, 50), (5.0, 1.2, 1.3)),
}


@pytest.mark.parametrize("edge_grid", ["native", "attention"])
@pytest.mark.parametrize("name", ORIENTATIONS)
def test_an_organ_is_found_in_the_same_place_in_every_stage(name: str, edge_grid: str) -> None:
    direction, shape, spacing = ORIENTATIONS[name]
    geometry = Geometry.from_spacing(shape, spacing, (-120.0, 35.0, 260.0), direction)
    centre = geometry.place(np.array(shape) * (0.36, 0.6, 0.42))
    volume = Volume(ball(geometry, centre), geometry)
    settings = {"edge_grid": edge_grid, "consensus_grid": (48, 44, 40)}
    found = results(segment(volume, model_of(settings=settings), FLOAT))
    assert list(found) == STAGES
    for stage, result in found.items():
        # The map is made on a quarter of the consensus grid, nearest: one such cell is its accuracy.
        cell = max(found["consensus"].output.geometry.spacing) * 4
        tolerance = cell if stage == "attention map" else 0.3 * max(spacing)
        assert np.linalg.norm(centre_of(result.output) - centre) < tolerance, stage
    final = found["labels"].output
    assert final.geometry is volume.geometry
    wrong = int((final.data != volume.data).sum())
    # By way of the attention grid and back, a few voxels of a surface that crosses 5 mm slices change sides.
    assert wrong <= (0 if edge_grid == "native" else 0.04 * volume.data.sum())
    assert isinstance(final, LabelMap)
    assert final.names == {1: "organ"}


def test_members_of_an_ensemble_are_averaged_in_every_stage() -> None:
    """Three networks with thresholds 0.2, 0.3 and 0.8 act as one near 0.3: the middle one has the last word."""
    geometry = Geometry.from_spacing((24, 26, 28), (2.0, 2.0, 2.0))
    volume = Volume(ball(geometry, geometry.place((12, 13, 14)), (14, 14, 14), 0.5), geometry)
    members = [Nearest((0.0, 2 * threshold), sharpness=400.0) for threshold in (0.2, 0.3, 0.8)]
    names = ("", "-2", "-3")
    nets = {f"{stage}{name}": net for stage in ("consensus", "attention", "edge")
            for name, net in zip(names, members, strict=True)}  # fmt: skip
    model = model_of(nets=nets)
    assert stages_of(model.card) == ("consensus", "attention", "edge")
    found = drain(segment(volume, model, FLOAT)).data
    assert np.array_equal(found, drain(segment(volume, model_of(members[1]), FLOAT)).data)
    assert found.any()
    assert not drain(segment(volume, model_of(members[2]), FLOAT)).data.any()


def test_every_stage_has_a_grid_of_its_own() -> None:
    volume = square()
    found = results(segment(volume, model_of(), FLOAT))
    assert found["consensus"].output.geometry.shape == SETTINGS["consensus_grid"]
    assert found["attention map"].output.geometry.shape == SETTINGS["consensus_grid"]
    assert found["attention"].output.geometry.shape == SETTINGS["attention_grid"]
    assert found["edge"].output.geometry.shape < volume.geometry.shape
    assert found["attention"].output.geometry.spacing < found["consensus"].output.geometry.spacing


@pytest.mark.parametrize("until", ["consensus", "attention", "edge", ""])
def test_stopping_after_a_stage_still_ends_with_labels_on_the_volumes_grid(until: str) -> None:
    volume = square()
    *_, last = events = list(segment(volume, model_of(), SegmentOptions(until=until, precision="float32")))
    found = results(events)
    expected = STAGES[: STAGES.index(until or "edge") + 1]
    assert list(found) == [*expected, "labels"]
    assert isinstance(last, StageResult)
    assert last.output.geometry == volume.geometry
    overlap = 2 * (last.output.data * volume.data).sum() / (last.output.data.sum() + volume.data.sum())
    assert overlap > 0.9


def test_without_the_stages_only_the_labels_are_shown() -> None:
    options = SegmentOptions(show_stages=False, precision="float32")
    assert list(results(segment(square(), model_of(), options))) == ["labels"]


def test_a_model_without_an_edge_network_ends_after_attention() -> None:
    model = model_of(nets={"consensus": Nearest(), "attention": Nearest()})
    assert stages_of(model.card) == ("consensus", "attention")
    assert list(results(segment(square(), model, FLOAT))) == ["consensus", "attention map", "attention", "labels"]


def test_an_unknown_stage_is_told_which_there_are() -> None:
    with pytest.raises(InvalidRecipe, match="consensus, attention, edge"):
        drain(segment(square(), model_of(), SegmentOptions(until="labels")))


def test_an_unknown_pipeline_is_refused() -> None:
    model = model_of()
    model = dataclasses.replace(model, card=dataclasses.replace(model.card, pipeline="none"))
    with pytest.raises(InvalidRecipe, match=r"'none'.*phased"):
        drain(segment(square(), model))


def test_an_empty_consensus_looks_at_everything_and_says_so() -> None:
    volume = square()
    nothing = Nearest((0.0, 9.0))
    found = results(
        segment(volume, model_of(nets={"consensus": nothing, "attention": Nearest(), "edge": Nearest()}), FLOAT)
    )
    assert "Nothing" in found["consensus"].note
    assert "everything" in found["attention map"].note
    assert found["edge"].output.geometry.shape == volume.geometry.shape
    np.testing.assert_array_equal(found["labels"].output.data, volume.data)


def test_a_volume_without_the_organ_gives_empty_labels() -> None:
    volume = Volume(np.zeros((20, 20, 20), np.float32), Geometry.from_spacing((20, 20, 20)))
    assert not drain(segment(volume, model_of(), FLOAT)).data.any()


@pytest.mark.parametrize("corner", [(0, 0, 0), (29, 29, 29), (0, 29, 15)])
def test_an_organ_at_the_border_is_found_whole(corner: tuple[float, float, float]) -> None:
    volume = square(at=corner)
    np.testing.assert_array_equal(drain(segment(volume, model_of(), FLOAT)).data, volume.data)


def two_organs() -> Volume:
    """A large organ of 0.5 and a small one of 1.0, far apart."""
    geometry = Geometry.from_spacing((40, 40, 40))
    data = ball(geometry, np.array([9, 10, 10]), (7, 7, 7), 0.5) + ball(geometry, np.array([31, 30, 30]), (4, 4, 4))
    return Volume(data, geometry)


def test_two_organs_far_apart_are_both_kept_with_the_window_around_all() -> None:
    volume = two_organs()
    model = model_of(Nearest((0.0, 0.5, 1.0), sharpness=200), labels={1: "a", 2: "b"}, settings={"window": "all"})
    found = results(segment(volume, model, FLOAT))
    np.testing.assert_array_equal(found["labels"].output.data, np.rint(volume.data * 2))
    assert found["consensus"].output.data.max() == 2


def test_the_window_around_the_largest_piece_leaves_the_other_out() -> None:
    volume = two_organs()
    model = model_of(Nearest((0.0, 0.5, 1.0), sharpness=200), labels={1: "a", 2: "b"})
    np.testing.assert_array_equal(drain(segment(volume, model, FLOAT)).data, volume.data == 0.5)


def test_with_several_classes_the_foreground_is_all_that_is_not_background() -> None:
    """No class alone reaches the threshold everywhere: 0.36, 0.32, 0.32."""

    class Undecided(nn.Module):
        activation = "none"

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv3d(1, 3, 1)

        def forward(self, x: torch.Tensor, *beside: torch.Tensor) -> torch.Tensor:
            there = (x > 0.5).float()
            return torch.cat([1 - 0.64 * there, 0.32 * there, 0.32 * there], 1)

    nets = {"consensus": Undecided(), "attention": Nearest((0.0, 1.0, 9.0)), "edge": Nearest((0.0, 1.0, 9.0))}
    volume = square()
    model = model_of(nets=nets, labels={1: "a", 2: "b"}, settings={"window_threshold": 0.5})
    found = results(segment(volume, model, FLOAT))
    assert found["attention map"].note == ""
    assert found["edge"].output.geometry.shape < volume.geometry.shape
    np.testing.assert_array_equal(found["labels"].output.data, volume.data)


def test_the_published_certain_window_still_runs() -> None:
    volume = square()
    found = results(segment(volume, model_of(settings={"window": "certain"}), FLOAT))
    np.testing.assert_array_equal(found["labels"].output.data, volume.data)


@pytest.mark.parametrize("values", [1, 700, 2000])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_the_edge_in_parts_equals_the_network_on_the_whole_window(
    n_classes: int, values: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(4)
    edge = build("edgenet", n_classes=n_classes).requires_grad_(False).eval()
    look = Nearest(tuple(np.linspace(0, 1, n_classes)), sharpness=10)
    noise = np.random.default_rng(2).normal(0, 0.2, (14, 16, 15)).astype(np.float32)
    clear = square((14, 16, 15), (6, 9, 7))
    volume = Volume((clear.data + noise).clip(0, 1), clear.geometry)
    model = model_of(
        nets={"consensus": look, "attention": look, "edge": edge},
        labels={i: str(i) for i in range(1, n_classes)},
        settings={"window": "all", "window_margin": (9, 9), "attention_grid": (8, 9, 10)},
    )
    monkeypatch.setattr(phased, "_EDGE_VALUES", values)
    events = list(segment(volume, model, FLOAT))
    assert sum(isinstance(e, Progress) and e.stage == "edge" for e in events) > 2
    found = results(events)["edge"].output
    assert found.geometry == volume.geometry  # the margin reaches all borders
    image = torch.from_numpy(volume.data)[None, None]
    coarse = look(resize(image[0], (8, 9, 10))[None])
    # An independent zoom: torch's trilinear is the same where the grid grows along every axis.
    whole = edge(image, F.interpolate(coarse, volume.data.shape, mode="trilinear", align_corners=False))[0]
    best = whole.topk(2, 0).values
    clear_cut = (best[0] - best[1] > 1e-4).numpy()
    assert clear_cut.mean() > 0.99
    np.testing.assert_array_equal(found.data[clear_cut], whole.argmax(0).numpy()[clear_cut])


def test_an_edge_network_that_sees_far_runs_on_the_attention_grid() -> None:
    torch.manual_seed(0)
    edge = build("edgenet", variant="v2", width=2).requires_grad_(False).eval()
    model = model_of(
        nets={"consensus": Nearest(), "attention": Nearest(), "edge": edge},
        settings={"edge_grid": "attention", "attention_grid": (64, 32, 32)},
    )
    assert drain(segment(square(), model, FLOAT)).data.shape == (30, 30, 30)


def test_the_real_networks_run_through_all_stages() -> None:
    torch.manual_seed(0)
    nets = {
        "consensus": build("snet", width=4).requires_grad_(False).eval(),
        "attention": build("attnnet", width=4).requires_grad_(False).eval(),
        "edge": build("edgenet").requires_grad_(False).eval(),
    }
    model = model_of(nets=nets, settings={"consensus_grid": (32, 32, 32), "attention_grid": (32, 32, 48)})
    volume = square((20, 41, 33))
    assert list(results(segment(volume, model))) == STAGES


@pytest.mark.parametrize("kind", ["window", "percentile"])
@pytest.mark.parametrize("minmax", [False, True])
@pytest.mark.parametrize("value", [0, 7])
def test_a_constant_volume_gives_numbers_and_no_organ(kind: str, minmax: bool, value: int) -> None:
    intensity = Intensity(kind, 0.5, 99.5, minmax)
    data = torch.full((1, 4, 5, 6), value, dtype=torch.int16)
    assert normalise(data, intensity).isfinite().all()
    volume = Volume(np.full((20, 20, 20), value, np.int16), Geometry.from_spacing((20, 20, 20)))
    found = results(segment(volume, model_of(intensity=intensity), FLOAT))
    assert np.isfinite(found["attention map"].output.data).all()
    assert not found["labels"].output.data.any()


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 30, 30), (3, 4, 5), (30, 2, 30)])
def test_a_volume_smaller_than_the_grid_is_segmented(shape: tuple[int, int, int]) -> None:
    data = np.zeros(shape, np.float32)
    data[:, : max(1, shape[1] // 2), : max(1, shape[2] // 2)] = 1
    volume = Volume(data, Geometry.from_spacing(shape))
    np.testing.assert_array_equal(drain(segment(volume, model_of(), FLOAT)).data, data)


@pytest.mark.parametrize("dtype", ["u1", "i1", "<i2", ">i2", "<u2", ">u4", "<i8", "<f2", ">f4", "<f8", "?"])
def test_every_type_of_voxel_gives_the_same_labels(dtype: str) -> None:
    volume = square()
    same = Volume(volume.data.astype(dtype), volume.geometry)
    np.testing.assert_array_equal(drain(segment(same, model_of(), FLOAT)).data, volume.data)


def test_the_volume_is_left_as_it_was() -> None:
    volume = square()
    before = volume.data.copy()
    volume.data.setflags(write=False)
    drain(segment(volume, model_of(intensity=Intensity("window", 0.2, 0.4)), FLOAT))
    np.testing.assert_array_equal(volume.data, before)


def test_several_channels_are_seen_together() -> None:
    """Each channel alone shows two balls; only where both are bright is the organ."""
    geometry = Geometry.from_spacing((30, 30, 30), direction=np.diag([1.0, -1.0, 1.0]))
    here, there, elsewhere = (geometry.place(at) for at in ([9, 9, 9], [20, 20, 20], [9, 20, 20]))
    wanted = ball(geometry, here, (4, 4, 4))
    data = np.stack([wanted + ball(geometry, there, (4, 4, 4)), wanted + ball(geometry, elsewhere, (4, 4, 4))])
    both = Nearest((0.4, 1.0), channels=2, sharpness=200)
    model = model_of(both, channels=("T1", "T2"))
    labels = drain(segment(Volume(data, geometry), model, FLOAT))
    np.testing.assert_array_equal(labels.data, wanted)


def test_each_channel_is_normalised_by_its_own_percentiles() -> None:
    rng = np.random.default_rng(0)
    data = np.stack([rng.normal(0, 1, (10, 10, 10)), rng.normal(500, 90, (10, 10, 10))]).astype(np.float32)
    low, high = np.percentile(data, [2, 95], axis=(1, 2, 3))[:, :, None, None, None]
    expected = ((data - low) / (high - low)).clip(0, 1)
    found = normalise(torch.from_numpy(data.copy()), Intensity("percentile", 2, 95))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_wrong_number_of_channels_is_refused(channels: int) -> None:
    volume = Volume(np.zeros((channels, 20, 20, 20)), Geometry.from_spacing((20, 20, 20)))
    with pytest.raises(GeometryMismatch, match=rf"2 channel.*T1, T2.*has {channels}"):
        drain(segment(volume, model_of(Nearest(channels=2), channels=("T1", "T2"))))


def warnings_of(volume: Volume, **facts: Any) -> list[str]:
    return [e.text for e in segment(volume, model_of(**facts), FLOAT) if isinstance(e, Warned)]


def test_what_does_not_look_like_the_training_volumes_is_said() -> None:
    facts = {"modality": "CT", "spacing_mm": (1.0, 1.0, 3.0)}
    coarse, data = Geometry.from_spacing((20, 20, 20), (7.0, 1.0, 1.0)), np.zeros((20, 20, 20))
    told = warnings_of(Volume(data, coarse, {"modality": "MR", "repaired": ["Was mended."]}), **facts)
    assert len(told) == 2  # of another modality, its spacing does not matter any more
    assert "MR" in told[0]
    assert "CT" in told[0]
    assert told[1] == "Was mended."
    (told_of_ct,) = warnings_of(Volume(data, coarse, {"modality": "CT"}), **facts)
    assert "1 x 1 x 7 mm" in told_of_ct


def test_nothing_is_said_of_a_volume_like_those_of_training_in_another_orientation() -> None:
    grid = Geometry.from_spacing((20, 20, 20), (1.0, 3.0, 1.2), direction=np.eye(3)[:, [1, 0, 2]])
    volume = Volume(np.zeros((20, 20, 20)), grid, {"modality": "CT"})
    assert warnings_of(volume, modality="CT", spacing_mm=(3.0, 1.0, 1.0)) == []


def speckled() -> Volume:
    volume = square()
    volume.data[24:27, 24:27, 22:25] = 1  # 27 voxels of 1 mm³
    return volume


@pytest.mark.parametrize(
    "options",
    [
        SegmentOptions(keep_largest=True, precision="float32"),
        SegmentOptions(min_component_ml=0.028, precision="float32"),
    ],
)
def test_small_parts_are_removed_when_asked_for(options: SegmentOptions) -> None:
    np.testing.assert_array_equal(
        drain(segment(speckled(), model_of(settings={"window": "all"}), options)).data, square().data
    )


@pytest.mark.parametrize("options", [FLOAT, SegmentOptions(min_component_ml=0.026, precision="float32")])
def test_small_parts_stay_when_not_asked_for(options: SegmentOptions) -> None:
    model = model_of(settings={"window": "all"})
    np.testing.assert_array_equal(drain(segment(speckled(), model, options)).data, speckled().data)


def test_no_mode_of_torch_leaks_to_the_consumer() -> None:
    assert torch.is_grad_enabled()
    for _ in segment(square(), model_of(), FLOAT):
        assert not torch.is_inference_mode_enabled()
        assert torch.is_grad_enabled()
        weight = torch.ones(1, requires_grad=True)
        assert (2 * weight).requires_grad


@pytest.mark.parametrize("n_events", range(1, 9))
def test_closing_early_is_fine_at_every_event(n_events: int) -> None:
    events = segment(square(), model_of(), FLOAT)
    for _ in range(n_events):
        next(events)
    events.close()  # type: ignore[attr-defined]
    assert not torch.is_inference_mode_enabled()
    assert torch.is_grad_enabled()


def test_the_same_model_can_be_trained_after_it_has_segmented() -> None:
    net = Nearest()
    drain(segment(square(), model_of(net), FLOAT))
    net.requires_grad_(True)
    net(torch.zeros(1, 1, 4, 4, 4)).sum().backward()
    assert net.conv.weight.grad is not None


def test_air_around_the_patient_does_not_move_the_result() -> None:
    geometry = Geometry.from_spacing(
        (40, 44, 48), (1.5, 1.2, 1.1), (3, 4, 5), turned(10, (1, 1, 0)) @ np.diag([1, -1, 1])
    )
    centre = geometry.place([17, 25, 24])
    data = np.maximum(0.3 * (ball(geometry, centre, (16, 15, 14)) > 0), ball(geometry, centre, (6, 6, 6)))
    volume = Volume(data.astype(np.float32), geometry)
    net = Nearest((0.1, 1.0))
    plain, cropped = (
        results(segment(volume, model_of(net, settings={"crop_above": above}), FLOAT)) for above in (None, 0.2)
    )
    for stage in STAGES:
        if stage != "attention map":
            assert np.linalg.norm(centre_of(cropped[stage].output) - centre) < 0.3 * 1.5, stage
    np.testing.assert_array_equal(cropped["labels"].output.data, plain["labels"].output.data)
    np.testing.assert_array_equal(cropped["labels"].output.data, data == 1)
    assert cropped["consensus"].output.geometry.spacing < plain["consensus"].output.geometry.spacing


def test_a_volume_of_air_only_is_looked_at_whole() -> None:
    volume = Volume(np.zeros((20, 20, 20)), Geometry.from_spacing((20, 20, 20)))
    found = results(segment(volume, model_of(settings={"crop_above": 0.2}), FLOAT))
    assert found["edge"].output.geometry.shape == (20, 20, 20)


def test_the_seconds_of_a_stage_leave_out_what_the_consumer_does(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(phased.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(phased, "_EDGE_VALUES", 1)
    for event in segment(square(), model_of(), FLOAT):
        clock[0] += 10
        if isinstance(event, StageResult):
            assert event.seconds == 0


@pytest.mark.parametrize(
    "settings", [{"window": "round"}, {"edge_grid": "fine"}, {"margin": 3}, {"consensus_grid": [32, 32]}]
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UnknownModel, match=str(next(iter(settings)))):
        drain(segment(square(), model_of(settings=settings)))


def test_settings_are_read_from_a_cards_lists() -> None:
    settings = PhasedSettings.of({"consensus_grid": [48, 64, 48], "window_margin": [4, 5]})
    assert settings == PhasedSettings(consensus_grid=(48, 64, 48), window_margin=(4, 5))


def full(*_: Any, **__: Any) -> Any:
    raise torch.OutOfMemoryError("no memory")


@pytest.mark.parametrize(
    ("module", "step"),
    [(slab_reader, "to_tensor"), (slab_reader, "zoom"), (phased, "zoom"), (phased, "resize_slab")],
)
def test_no_memory_between_the_networks_is_told_as_such(
    module: ModuleType, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A RuntimeError would be swallowed by the workers of napari and superqt."""
    monkeypatch.setattr(module, step, full)
    with pytest.raises(DeviceMemory, match="memory"):
        drain(segment(square(), model_of(), FLOAT))


def only_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every device but the CPU run out of memory at the first voxel."""
    to_device = slab_reader.to_tensor

    def to_cpu(array: np.ndarray, device: torch.device | str = "cpu") -> torch.Tensor:
        return to_device(array, device) if torch.device(device).type == "cpu" else full()

    monkeypatch.setattr(slab_reader, "to_tensor", to_cpu)


def test_a_volume_too_large_for_the_device_stays_in_the_computers_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    only_cpu(monkeypatch)
    # "meta" stands for a device with another memory: networks fail there too and come back to the CPU.
    model = model_of(Careful())
    model = Model(model.card, model.nets, torch.device("meta"))
    volume = square()
    events: list[Event] = list(segment(volume, model, FLOAT))
    assert any(isinstance(e, Warned) and "memory" in e.text for e in events)
    np.testing.assert_array_equal(results(events)["labels"].output.data, volume.data)


class Careful(Nearest):
    """Runs out of memory on any device but the CPU."""

    def forward(self, x: torch.Tensor, *beside: torch.Tensor) -> torch.Tensor:
        return super().forward(x, *beside) if x.device.type == "cpu" else full()


class Narrow(nn.Module):
    """A real edge network that fits into the memory for a few planes only, and on some devices only."""

    activation = "none"

    def __init__(self, planes: int, *, only_cpu: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = build("edgenet", in_channels=1, n_classes=2).eval().requires_grad_(False)
        self.planes, self.only_cpu = planes, only_cpu

    def forward(self, x: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        if x.shape[2] > self.planes or (self.only_cpu and x.device.type != "cpu"):
            full()
        return self.net(x, s)


def edged(planes: int) -> Model:
    net = Nearest(sharpness=8.0)
    return model_of(nets={"consensus": net, "attention": net, "edge": Narrow(planes)})


def noisy() -> Volume:
    volume = square()
    noise = np.random.default_rng(0).normal(0, 0.15, volume.data.shape).astype(np.float32)
    return Volume(volume.data + noise, volume.geometry)


@pytest.mark.parametrize("planes", [8, 9, 12])
def test_an_edge_that_does_not_fit_at_once_is_computed_in_parts_with_the_same_result(planes: int) -> None:
    whole = results(segment(noisy(), edged(1000), FLOAT))["labels"].output.data
    events = list(segment(noisy(), edged(planes), FLOAT))
    np.testing.assert_array_equal(results(events)["labels"].output.data, whole)
    (warned,) = [e.text for e in events if isinstance(e, Warned)]
    assert "memory" in warned
    assert "smaller parts" in warned
    moves = [e.done for e in events if isinstance(e, Progress) and e.stage == "edge"]
    assert moves == sorted(set(moves))
    assert 0 < whole.sum() < whole.size


def test_the_zoom_of_the_edge_is_tried_in_parts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = results(segment(noisy(), edged(1000), FLOAT))["labels"].output.data
    zoomed = phased.resize_slab

    def tight(data: torch.Tensor, shape: Any, planes: slice, rows: slice) -> torch.Tensor:
        return zoomed(data, shape, planes, rows) if planes.stop - planes.start <= 10 else full()

    monkeypatch.setattr(phased, "resize_slab", tight)
    np.testing.assert_array_equal(results(segment(noisy(), edged(1000), FLOAT))["labels"].output.data, expected)


def test_an_edge_that_fits_in_no_part_goes_to_the_cpu_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    only_cpu(monkeypatch)
    net = Careful(sharpness=8.0)
    nets = {"consensus": net, "attention": net, "edge": Narrow(1000)}
    expected = results(segment(noisy(), model_of(nets=nets), FLOAT))["labels"].output.data
    card = model_of(nets=nets).card
    elsewhere = Model(card, {**nets, "edge": Narrow(1000, only_cpu=True)}, torch.device("meta"))
    monkeypatch.setattr(Careful, "forward", Nearest.forward)
    # "meta" computes nothing: only the edge is sent there, whose memory is always full.
    run = InferenceRunner._run

    def only_edge_elsewhere(engine: InferenceRunner, net: nn.Module, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return run(engine, net, inputs) if isinstance(net, Narrow) else net(*inputs)

    monkeypatch.setattr(InferenceRunner, "_run", only_edge_elsewhere)
    events = list(segment(noisy(), elsewhere, FLOAT))
    np.testing.assert_array_equal(results(events)["labels"].output.data, expected)
    told = [e.text for e in events if isinstance(e, Warned)]
    assert len(told) == 3
    assert "read in slabs" in told[0]
    assert "smaller parts" in told[1]
    assert "continued on the CPU" in told[2]


def test_a_careful_run_averages_six_views_and_finds_the_organ_at_the_same_place() -> None:
    direction, shape, spacing = ORIENTATIONS["oblique"]
    geometry = Geometry.from_spacing(shape, spacing, (-120.0, 35.0, 260.0), direction)
    centre = geometry.place(np.array(shape) * (0.45, 0.5, 0.5))
    data = ball(geometry, centre)
    grains = np.random.default_rng(0).normal(0, 0.3 * float(np.ptp(data)), data.shape)
    volume = Volume((data + grains).astype(np.float32), geometry)
    model = model_of(settings={"consensus_grid": (48, 44, 40)})
    model = dataclasses.replace(model, nets={"consensus": model.nets["consensus"]})
    plain, careful = (
        list(segment(volume, model, dataclasses.replace(FLOAT, careful=careful))) for careful in (None, True)
    )
    seen = [e.done for e in careful if isinstance(e, Progress) and e.stage == "consensus" and e.total == 6]
    assert seen == [1, 2, 3, 4, 5]
    one, other = (drain(iter(events)) for events in (plain, careful))
    truth = data > data.mean()
    overlaps = [2 * ((m.data > 0) & truth).sum() / ((m.data > 0).sum() + truth.sum()) for m in (one, other)]
    assert overlaps[1] > overlaps[0]  # the mean of six views has less noise


@pytest.mark.parametrize("spans", list(careful_views((20, 24, 28))))
def test_a_view_of_a_careful_run_is_put_back_where_it_was_taken(spans: list[tuple[float, float]]) -> None:
    """Checked on a linear ramp, which linear resampling keeps, away from the border."""
    shape = (20, 24, 28)
    ramp = torch.stack(torch.meshgrid(*(torch.arange(float(n)) for n in shape), indexing="ij"))
    back = zoom(zoom(ramp, spans, shape), phased._back(spans, shape), shape)
    assert (back - ramp)[:, 4:-4, 4:-4, 4:-4].abs().max() < 0.1  # of a voxel


@pytest.mark.parametrize(("setting", "pieces"), [("", 2), ("each", 1)])
def test_only_the_largest_piece_of_a_class_is_kept_where_the_card_says_so(setting: str, pieces: int) -> None:
    geometry = Geometry.from_spacing((40, 40, 40), (1, 1, 1))
    data = np.zeros((40, 40, 40), np.float32)
    data[5:20, 5:20, 5:20], data[28:34, 28:34, 28:34] = 1, 1
    model = model_of(settings={"consensus_grid": (40, 40, 40), "keep_largest": setting})
    model = dataclasses.replace(model, nets={"consensus": model.nets["consensus"]})
    found = drain(segment(Volume(data, geometry), model, FLOAT)).data
    assert ndimage.label(found)[1] == pieces

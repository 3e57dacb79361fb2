"""Volumes become layers in their true place, and come back as they were."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from napari_fmseg._napari.layers import (
    along,
    as_filed,
    geometry_of,
    image_layers,
    labels_layer,
    labels_of,
    map_layer,
    volume_of,
)
from napari_fmseg.core.errors import GeometryMismatch
from napari_fmseg.core.terminology import label_info
from napari_fmseg.core.volume import Geometry, LabelMap, Volume

napari_layers = pytest.importorskip("napari.layers")

TURN = np.linalg.qr(np.eye(3) + 0.1 * np.random.default_rng(3).standard_normal((3, 3)))[0]
TURN = TURN * np.sign(np.diag(TURN))
ORDERS = [
    np.diag(signs)[:, list(order)].astype(float)
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]


def made(direction: np.ndarray, dtype: str = "float32") -> Volume:
    geometry = Geometry.from_spacing((4, 5, 6), (3.0, 1.5, 1.2), (-20, 31, 7), direction)
    return Volume(np.random.default_rng(1).integers(0, 4, (4, 5, 6)).astype(dtype), geometry)


def world(data: np.ndarray, options: dict) -> dict[tuple[float, ...], float]:
    """Tell which value stands where in napari's world."""
    index = np.moveaxis(np.indices(data.shape), 0, -1).reshape(-1, 3)
    places = np.round(index * np.array(options["scale"]) + np.array(options["translate"]), 3)
    return dict(zip(map(tuple, places.tolist()), data.reshape(-1).tolist(), strict=True))


@pytest.mark.parametrize("turn", [np.eye(3), TURN], ids=["straight", "oblique"])
@pytest.mark.parametrize("order", ORDERS)
def test_every_order_of_axes_is_shown_along_the_patients_axes(order: np.ndarray, turn: np.ndarray) -> None:
    volume = made(turn @ order)
    [(data, options, kind)] = image_layers(volume, "scan")
    shown = options["metadata"]["fmseg"]["geometry"]
    assert kind == "image"
    assert shown.orientation == "SPL"
    for index in np.ndindex(*data.shape):  # every voxel stays where it is in the patient
        where = np.rint(np.linalg.solve(volume.geometry.affine, [*shown.place(index), 1])[:3]).astype(int)
        assert data[index] == volume.data[tuple(where)]


@pytest.mark.parametrize("order", ORDERS[::5])
def test_a_stage_lies_on_its_image_whatever_the_order_of_its_axes(order: np.ndarray) -> None:
    volume = made(TURN @ order, "uint8")
    [(_, image, _)] = image_layers(volume, "scan")
    frame = image["metadata"]["fmseg"]["geometry"]
    stage = along(volume, made(TURN @ ORDERS[7]).geometry)  # the same voxels in another order
    labels = LabelMap(stage.data, stage.geometry)
    data, options, _ = labels_layer(labels, "stage", frame=frame)
    [(base, _, _)] = image_layers(volume, "scan")
    assert world(data, options) == world(base, image)


def test_a_coarse_grid_covers_the_same_field_of_view() -> None:
    volume = made(TURN)
    frame = image_layers(volume, "scan")[0][1]["metadata"]["fmseg"]["geometry"]
    coarse = volume.geometry.resize((2, 5, 3))
    _, options, _ = map_layer(Volume(np.zeros((2, 5, 3), np.float32), coarse), "map", frame=frame)
    edges = []
    for place, shape in ((options, (2, 5, 3)), (image_layers(volume, "scan")[0][1], (4, 5, 6))):
        scale, translate = np.array(place["scale"]), np.array(place["translate"])
        edges.append(np.stack([translate - scale / 2, translate + scale * (np.array(shape) - 0.5)]))
    np.testing.assert_allclose(edges[0], edges[1], atol=1e-6)


@pytest.mark.parametrize("order", ORDERS[::5])
def test_labels_come_back_from_the_layer_in_the_files_own_order(order: np.ndarray) -> None:
    volume = made(TURN @ order, "uint8")
    labels = LabelMap(volume.data, volume.geometry, {}, {1: "liver", 2: "spleen", 3: "x"}, {2: (0.0, 0.5, 1.0)})
    data, options, _ = labels_layer(labels, "mask")
    layer = napari_layers.Labels(data, **options)
    back = as_filed(labels_of(layer), volume.geometry)
    assert back.geometry == volume.geometry
    np.testing.assert_array_equal(back.data, volume.data)
    assert back.names == labels.names
    np.testing.assert_allclose(back.colors[2], labels.colors[2], atol=0.01)


def test_several_channels_become_layers_that_come_back_as_one_volume() -> None:
    one = made(np.eye(3))
    volume = Volume(np.stack([one.data, one.data * 2]), one.geometry, {"modality": "MR"})
    layers = [napari_layers.Image(data, **options) for data, options, _ in image_layers(volume, "scan")]
    assert len({layer.name for layer in layers}) == 2
    back = volume_of(layers)
    np.testing.assert_array_equal(back.data, volume.data)
    assert back.geometry.matches(volume.geometry)
    assert back.meta["modality"] == "MR"


def test_a_layer_that_was_moved_is_believed_where_it_is() -> None:
    volume = made(np.eye(3))
    [(data, options, _)] = image_layers(volume, "scan")
    layer = napari_layers.Image(data, **options)
    assert geometry_of(layer) == volume.geometry
    layer.translate = (0, 0, 50)
    assert geometry_of(layer).origin == (0, 0, 50)


def test_a_layer_that_is_no_volume_is_refused() -> None:
    with pytest.raises(GeometryMismatch, match="three"):
        geometry_of(napari_layers.Image(np.zeros((4, 5)), name="photo"))


def test_grids_turned_against_each_other_are_not_shown_on_each_other() -> None:
    with pytest.raises(GeometryMismatch, match="turned"):
        along(made(np.eye(3)), made(np.linalg.qr(np.ones((3, 3)) - 2 * np.eye(3))[0]).geometry)


def test_a_ct_without_a_word_of_it_is_shown_in_the_soft_tissue_window() -> None:
    volume = made(np.eye(3), "int16")
    data = volume.data * 500 - 1000
    [(_, options, _)] = image_layers(Volume(data, volume.geometry, {"format": "NIfTI"}), "scan")
    assert options["contrast_limits"] == (-160, 240)


def test_a_known_organ_has_its_usual_colour_and_no_two_look_the_same() -> None:
    volume = made(np.eye(3), "uint8")
    names = {1: "liver", 2: "kidney_left", 3: "kidney_right"}
    colormap = labels_layer(LabelMap(volume.data, volume.geometry, {}, names), "mask")[1]["colormap"]
    assert colormap[1][:3] == label_info("liver").color
    assert len({colormap[label] for label in names}) == 3


@pytest.mark.parametrize(
    ("meta", "window"),
    [
        ({"window_center": 40, "window_width": 400}, (-160, 240)),
        ({"modality": "CT"}, (-160, 240)),
        ({}, (0, 3)),
    ],
)
def test_the_window_is_the_files_own_or_one_that_shows_something(meta: dict, window: tuple) -> None:
    volume = made(np.eye(3))
    [(_, options, _)] = image_layers(Volume(volume.data, volume.geometry, meta), "scan")
    assert options["contrast_limits"] == pytest.approx(window)

"""A box drawn over an image, or what the view shows, becomes exactly the voxels under it."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("napari")
from napari.components import ViewerModel

from napari_fmseg._napari.choosers.roi import box_of_shapes, box_of_view, crop_to, paste_into
from napari_fmseg._napari.layers import image_layers
from napari_fmseg.core.errors import GeometryMismatch
from napari_fmseg.core.volume import Geometry, LabelMap, Volume

TURN = np.linalg.qr(np.eye(3) + 0.1 * np.random.default_rng(3).standard_normal((3, 3)))[0]
TURN = TURN * np.sign(np.diag(TURN))
GRID = Geometry.from_spacing((6, 8, 10), (3.0, 2.0, 1.5), (5, -6, 7), TURN @ np.diag([1, -1, 1]))


@pytest.fixture
def viewer() -> ViewerModel:
    viewer = ViewerModel()
    for data, options, _ in image_layers(Volume(np.random.default_rng(1).random(GRID.shape), GRID), "scan"):
        viewer.add_image(data, **options)
    return viewer


def drawn(viewer: ViewerModel, first: tuple, last: tuple, ndim: int = 3) -> object:
    """Draw a rectangle from the middle of one voxel to the middle of another, in the plane of the first."""
    image = viewer.layers["scan"]
    (z, y0, x0), (_, y1, x1) = (image.data_to_world(np.array(at, float)) for at in (first, last))
    corners = np.array([[z, y0, x0], [z, y0, x1], [z, y1, x1], [z, y1, x0]])
    return viewer.add_shapes([corners[:, 3 - ndim :]], shape_type="rectangle", ndim=ndim)


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_rectangle_in_one_plane_holds_for_the_whole_depth(viewer: ViewerModel, ndim: int) -> None:
    shapes = drawn(viewer, (2, 1, 3), (2, 5, 8), ndim)
    assert box_of_shapes(shapes, viewer.layers["scan"]) == (slice(0, 6), slice(1, 6), slice(3, 9))


def test_rectangles_in_two_planes_bound_the_depth(viewer: ViewerModel) -> None:
    shapes = drawn(viewer, (1, 1, 3), (1, 5, 8))
    other = drawn(viewer, (4, 2, 2), (4, 3, 4))
    shapes.add(other.data[0], shape_type="rectangle")
    shapes.selected_data = set()
    assert box_of_shapes(shapes, viewer.layers["scan"]) == (slice(1, 5), slice(1, 6), slice(2, 9))
    shapes.selected_data = {1}
    assert box_of_shapes(shapes, viewer.layers["scan"]) == (slice(0, 6), slice(2, 4), slice(2, 5))


def test_what_is_drawn_beyond_the_image_is_cut_and_beside_it_is_refused(viewer: ViewerModel) -> None:
    assert box_of_shapes(drawn(viewer, (2, -9, 3), (2, 5, 99)), viewer.layers["scan"])[1:] == (
        slice(0, 6),
        slice(3, 10),
    )
    with pytest.raises(GeometryMismatch, match="beside"):
        box_of_shapes(drawn(viewer, (2, 20, 3), (2, 30, 5)), viewer.layers["scan"])
    with pytest.raises(GeometryMismatch, match="Nothing is drawn"):
        box_of_shapes(viewer.add_shapes(ndim=3), viewer.layers["scan"])


def test_the_view_gives_the_voxels_it_shows(viewer: ViewerModel) -> None:
    image = viewer.layers["scan"]
    image.corner_pixels = np.array([[0, 2, 3], [5, 6, 7]])
    assert box_of_view(image, (1, 2)) == (slice(0, 6), slice(2, 7), slice(3, 8))
    assert box_of_view(image, (0, 1, 2)) == (slice(0, 6), slice(0, 8), slice(0, 10))


def test_a_part_stays_where_it_is_in_the_patient() -> None:
    volume = Volume(np.arange(480).reshape(GRID.shape), GRID)
    box = (slice(1, 4), slice(2, 6), slice(3, 9))
    part = crop_to(volume, box)
    for index in np.ndindex(*part.data.shape):
        there = tuple(i + s.start for i, s in zip(index, box, strict=True))
        np.testing.assert_allclose(part.geometry.place(index), GRID.place(there))
        assert part.data[index] == volume.data[there]
    labels = LabelMap(np.ones(part.data.shape, np.uint8), part.geometry, {}, {1: "liver"})
    whole = paste_into(labels, box, volume)
    assert whole.geometry == GRID
    assert whole.data.sum() == labels.data.size
    assert whole.data[box].all()
    assert whole.names == {1: "liver"}

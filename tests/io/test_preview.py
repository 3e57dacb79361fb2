import io

import numpy as np
import pytest

from napari_fmseg.core.errors import GeometryMismatch, UnwritableVolume
from napari_fmseg.core.volume import Geometry, LabelMap, Volume
from napari_fmseg.io.preview import preview, write_preview


def case(flip=False):
    """A bright front, right and head; label 1 in the right, front, upper eighth."""
    shape = (10, 20, 30)
    data = np.zeros(shape, np.float32)
    labels = np.zeros(shape, np.uint8)
    data[5:, :10, :15] = 100  # z to superior, y to posterior, x to left: this is head, front, right
    labels[6:9, 2:8, 3:12] = 1
    geometry = Geometry.from_spacing(shape, (3, 1, 1))
    if flip:
        affine = geometry.affine.copy()
        affine[:3, 3] = geometry.place((9, 0, 29))
        affine[:3, 0] *= -1
        affine[:3, 2] *= -1
        geometry = Geometry(shape, affine)
        data, labels = data[::-1, :, ::-1].copy(), labels[::-1, :, ::-1].copy()
    return Volume(data, geometry), LabelMap(labels, geometry, colors={1: (1.0, 0.0, 0.0)})


def test_the_picture_shows_the_patient_s_right_on_the_left_front_and_head_up():
    picture = preview(*case(), height=60)
    assert picture.shape == (60, 60 + 60 + 40, 3)  # 30 mm from side to side and from head to foot, 20 mm deep
    rows, columns = np.nonzero((picture == (255, 0, 0)).all(-1))
    for start, stop in ((0, 60), (60, 120), (120, 160)):
        here = (columns >= start) & (columns < stop)
        assert here.any()
        assert rows[here].mean() < 30
        assert columns[here].mean() < (start + stop) / 2


def test_one_thick_slice_makes_no_endless_picture():
    geometry = Geometry.from_spacing((1, 64, 64), (0.01, 1, 1))
    labels = LabelMap(np.ones((1, 64, 64), np.uint8), geometry)
    assert preview(Volume(labels.data, geometry), labels, height=100).shape == (100, 300, 3)


def test_the_picture_does_not_depend_on_how_the_voxels_are_listed():
    np.testing.assert_array_equal(preview(*case()), preview(*case(flip=True)))


def test_an_empty_result_and_a_constant_volume_have_a_picture():
    volume, labels = case()
    empty = LabelMap(np.zeros_like(labels.data), labels.geometry)
    assert preview(Volume(np.zeros_like(volume.data), volume.geometry), empty).max() == 0


def test_the_file_is_a_png_that_others_read(tmp_path):
    image = pytest.importorskip("PIL.Image")
    write_preview(*case(), tmp_path / "new" / "view.png")
    read = np.asarray(image.open(io.BytesIO((tmp_path / "new" / "view.png").read_bytes())))
    np.testing.assert_array_equal(read, preview(*case()))


def test_a_coarse_stage_or_a_place_without_room_is_refused(tmp_path):
    volume, labels = case()
    coarse = LabelMap(labels.data[::2].copy(), labels.geometry.resize((5, 20, 30)))
    with pytest.raises(GeometryMismatch, match="own grid"):
        preview(volume, coarse)
    (tmp_path / "file").write_text("")
    with pytest.raises(UnwritableVolume, match="Choose another place"):
        write_preview(volume, labels, tmp_path / "file" / "view.png")

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
import torch
import torch.nn.functional as F

from napari_fmseg.core import resampling_torch
from napari_fmseg.core.errors import GeometryMismatch
from napari_fmseg.core.resampling import resample, stack_channels
from napari_fmseg.core.resampling_torch import (
    bounding_box,
    box_above,
    box_in,
    resize,
    resize_slab,
    slabs,
    to_tensor,
    zoom,
)
from napari_fmseg.core.volume import Geometry, LabelMap, Volume

SHAPE = (9, 10, 11)


def noise(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(3))


def test_zooming_in_equals_torch_trilinear() -> None:
    data = noise(2, *SHAPE)
    expected = F.interpolate(data[None], (18, 13, 25), mode="trilinear", align_corners=False)[0]
    torch.testing.assert_close(resize(data, (18, 13, 25)), expected, atol=1e-5, rtol=0)


def test_zooming_out_by_two_averages_without_aliasing() -> None:
    stripes = torch.tensor([0.0, 1.0] * 16).expand(1, 4, 4, 32)
    assert resize(stripes, (4, 4, 16))[..., 1:-1].std() < 1e-6


def test_a_span_reads_the_same_as_a_crop() -> None:
    data = noise(1, *SHAPE)
    torch.testing.assert_close(zoom(data, [(2, 6), (0, 10), (3, 8)], (4, 10, 5)), data[:, 2:6, :, 3:8])


def test_planes_and_rows_of_a_zoomed_volume_equal_the_whole_zoomed_volume() -> None:
    data = noise(3, *SHAPE)
    for shape in ((20, 21, 22), (5, 6, 7), (9, 20, 4)):
        whole = resize(data, shape)
        for planes in slabs(shape, 3, voxels=3 * 3 * shape[1] * shape[2]):
            torch.testing.assert_close(resize_slab(data, shape, planes), whole[:, planes], atol=1e-5, rtol=0)
            part = resize_slab(data, shape, planes, slice(3, 5))
            torch.testing.assert_close(part, whole[:, planes, 3:5], atol=1e-5, rtol=0)


def test_resampling_equals_simpleitk_on_a_flipped_permuted_and_shifted_grid() -> None:
    data = noise(*SHAPE).numpy()
    source = Geometry.from_spacing(SHAPE, (2.0, 1.0, 1.5), (3.0, 4.0, 5.0))
    direction = np.array([[0, 0, -1.0], [1, 0, 0], [0, 1, 0]])
    grid = Geometry.from_spacing((12, 14, 9), (0.9, 1.1, 1.7), (18.0, 4.4, 6.1), direction)
    found = resample(Volume(data, source), grid).data

    image = sitk.GetImageFromArray(data)
    image.SetSpacing(source.spacing[::-1])
    image.SetOrigin(source.origin[::-1])
    reference = sitk.Image(*map(int, (9, 14, 12)), sitk.sitkFloat32)
    reference.SetSpacing(grid.spacing[::-1])
    reference.SetOrigin(grid.origin[::-1])
    reference.SetDirection(grid.direction[::-1, ::-1].ravel())
    expected = sitk.GetArrayFromImage(sitk.Resample(image, reference, sitk.Transform(), sitk.sitkLinear, 0.0))
    # Between the last voxel's centre and its edge both repeat it; exactly on the edge they may differ.
    assert np.isclose(found, expected, atol=1e-4).mean() > 0.995


def test_labels_keep_their_type_names_and_values() -> None:
    labels = LabelMap(np.arange(27, dtype=np.uint16).reshape(3, 3, 3), Geometry.from_spacing((3, 3, 3)), names={1: "a"})
    finer = resample(labels, labels.geometry.resize((6, 6, 6)), order=0)
    assert isinstance(finer, LabelMap)
    assert finer.data.dtype == np.uint16
    assert finer.names == {1: "a"}
    np.testing.assert_array_equal(finer.data[::2, ::2, ::2], labels.data)


def test_grids_turned_against_each_other_are_refused() -> None:
    turn = np.array([[1, 0, 0], [0, 0.8, -0.6], [0, 0.6, 0.8]])
    volume = Volume(np.zeros(SHAPE), Geometry.from_spacing(SHAPE))
    with pytest.raises(GeometryMismatch, match="turned"):
        resample(volume, Geometry.from_spacing(SHAPE, direction=turn))


def test_the_bounding_box_is_tight_and_nothing_has_none() -> None:
    mask = torch.zeros(SHAPE)
    assert bounding_box(mask) is None
    mask[2, 3, 4] = mask[5, 3, 7] = 1
    assert bounding_box(mask) == (slice(2, 6), slice(3, 4), slice(4, 8))


@pytest.mark.parametrize("planes", [1, 3, 100])
def test_a_box_around_large_values_is_that_of_the_mask_however_many_planes_are_looked_at(
    planes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resampling_torch, "_BOX_VOXELS", planes * 12 * 13)
    generator = np.random.default_rng(3)
    for value in (0.9, 0.9995, 2.0):
        image = generator.random((2, 11, 12, 13))
        places = np.argwhere((image > value).any(0))
        expected = (
            tuple(slice(a, b + 1) for a, b in zip(places.min(0), places.max(0), strict=True)) if len(places) else None
        )
        assert box_above(torch.from_numpy(image), value) == expected
        assert box_above(np.flip(np.flip(image, (1, 3)).copy(), (1, 3)), value) == expected  # a flipped view
        assert bounding_box((image > value).any(0)) == expected
    assert bounding_box(np.zeros((0, 4, 4))) is None
    assert box_above(torch.tensor([[[[-3, 2]]]], dtype=torch.int16), 1.5) == (slice(0, 1), slice(0, 1), slice(1, 2))


def test_a_box_on_another_grid_covers_at_least_the_same_place() -> None:
    box = box_in((slice(1, 3), slice(0, 4), slice(2, 3)), (4, 4, 4), (10, 6, 4))
    assert box == (slice(2, 8), slice(0, 6), slice(2, 3))


def test_an_array_that_torch_can_hold_is_not_copied() -> None:
    array = np.zeros(SHAPE, np.int16)
    assert to_tensor(array).data_ptr() == array.ctypes.data
    assert to_tensor(np.full((1, 1, 1), 60000, np.uint16)).item() == 60000
    assert to_tensor(np.full((1, 1, 1), 258, ">i2")).item() == 258


@pytest.mark.parametrize("shape", [(1, 4, 5), (4, 1, 5), (4, 5, 1), (1, 1, 1)])
def test_a_volume_that_is_one_voxel_thick_along_a_flipped_axis_becomes_a_tensor(shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    axis = shape.index(1)
    assert np.array_equal(to_tensor(np.flip(array, axis)).numpy(), array)


def ct_and_pet() -> tuple[Volume, Volume]:
    """A CT of 2 mm and a coarser PET filed the other way round, each of which tells in its values where it lies."""
    fine = Geometry.from_spacing((20, 24, 26), (2.0, 2.0, 2.0), (-10.0, 5.0, 0.0))
    turn = np.diag([-1.0, 1.0, -1.0])
    coarse = Geometry.from_spacing((12, 16, 16), (4.0, 4.0, 4.0), (38.0, 0.0, 58.0), turn)

    def ramp(geometry: Geometry) -> np.ndarray:
        places = geometry.place(np.argwhere(np.ones(geometry.shape, bool)))
        return (places @ [1.0, 2.0, 3.0]).reshape(geometry.shape).astype(np.float32)

    ct = Volume((ramp(fine) - 1000).astype(np.int16), fine, {"modality": "CT", "units": "HU", "format": "DICOM"})
    return ct, Volume(ramp(coarse), coarse, {"modality": "PT", "units": "SUV", "format": "DICOM", "warnings": ["odd"]})


def test_ct_and_pet_become_two_channels_on_the_grid_of_the_first() -> None:
    ct, pet = ct_and_pet()
    both = stack_channels([ct, pet], ["CT", "PET"])
    assert both.geometry == ct.geometry
    assert both.data.dtype == np.float32
    np.testing.assert_array_equal(both.data[0], ct.data)
    expected = (ct.geometry.place(np.argwhere(np.ones(ct.geometry.shape, bool))) @ [1.0, 2.0, 3.0]).reshape(
        ct.data.shape
    )
    np.testing.assert_allclose(both.data[1][3:-3, 3:-3, 3:-3], expected[3:-3, 3:-3, 3:-3], atol=1e-3)
    assert both.meta["channel_units"] == ("HU", "SUV")
    assert both.meta["channels"] == ("CT", "PET")
    assert both.meta["format"] == "DICOM"
    assert "units" not in both.meta
    assert "modality" not in both.meta
    first, second = both.meta["warnings"]
    assert first == "odd"
    assert "PET was resampled from voxels of 4 x 4 x 4 mm to 2 x 2 x 2 mm" in second


def test_where_a_channel_does_not_reach_it_has_its_lowest_value_and_that_is_said() -> None:
    ct, pet = ct_and_pet()
    both = stack_channels([pet, ct], ["PET", "CT"])
    assert both.geometry == pet.geometry
    assert both.data[1, -1, -1, -1] == both.data[1].min() == ct.data.min() < -900
    assert "It covers" in both.meta["warnings"][-1]


def test_one_grid_needs_no_resampling_and_no_word() -> None:
    ct, _ = ct_and_pet()
    both = stack_channels([ct, ct])
    assert both.data.dtype == np.int16
    assert both.meta["warnings"] == []
    assert (both.meta["modality"], both.meta["channels"]) == ("CT", ("channel 1", "channel 2"))


def test_channels_that_do_not_fit_together_are_refused() -> None:
    ct, pet = ct_and_pet()
    away = Volume(pet.data, Geometry.from_spacing(pet.data.shape, (4, 4, 4), (900, 0, 0)))
    for wrong, match in (
        ([], "no volume|0 volumes"),
        ([ct, stack_channels([ct, ct])], "several"),
        ([ct, away], "overlap"),
    ):
        with pytest.raises(GeometryMismatch, match=match):
            stack_channels(wrong, [f"image {i}" for i in range(len(wrong))])
    with pytest.raises(GeometryMismatch, match="2 volumes"):
        stack_channels([ct, pet], ["CT"])

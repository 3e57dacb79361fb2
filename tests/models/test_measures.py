"""What is measured of volumes: on a sample as on the whole, over any orientation; cards keep ranges only."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import numpy as np
import pytest

from napari_fmseg.core.errors import UnknownModel
from napari_fmseg.core.volume import Geometry, Volume
from napari_fmseg.models.card import read_card, write_card
from napari_fmseg.models.measures import join, measure_volume, summarise


def test_a_sample_measures_what_the_whole_volume_has() -> None:
    rng = np.random.default_rng(0)
    grid = Geometry.from_spacing((150, 200, 180), (2.0, 1.0, 1.5))
    data = np.full(grid.shape, -1000, np.int16)
    data[30:120, 50:150, 40:140] = rng.integers(-50, 350, (90, 100, 100))
    found = measure_volume(Volume(data, grid))
    assert found.spacing_mm == (2, 1, 1.5)
    assert found.field_mm == (300, 200, 270)
    np.testing.assert_allclose(found.body_mm, (180, 100, 150), atol=12)  # two steps of the sample
    assert found.section_cm2 == pytest.approx(100 * 150 / 100, rel=0.1)
    assert found.rim == 0
    (values,) = found.channels
    for have, percent in ((values.low, 0.5), (values.median, 50), (values.high, 99.5)):
        assert have == pytest.approx(np.percentile(data, percent), abs=8)
    assert values.negative == pytest.approx((data < 0).mean(), abs=0.02)
    assert values.whole == 1
    assert values.is_hu


def test_measures_follow_the_patients_axes_and_not_the_files(body_scan: Any) -> None:
    volume = body_scan("ct-abdomen")
    straight = measure_volume(volume)
    turn = np.eye(3)[[2, 0, 1]] * [1, -1, 1]  # x first, one axis flipped
    data = np.flip(volume.data.transpose(1, 2, 0), 1)
    spacing = [volume.geometry.spacing[i] for i in (1, 2, 0)]
    filed = measure_volume(Volume(data, Geometry.from_spacing(data.shape, tuple(spacing), (9, 8, 7), turn)))
    axes = Geometry.from_spacing(data.shape, tuple(spacing), (9, 8, 7), turn).canonical()[1]
    for name in ("spacing_mm", "field_mm", "body_mm"):
        expected = [getattr(straight, name)[(1, 2, 0)[i]] for i in axes]
        np.testing.assert_allclose(getattr(filed, name), expected, rtol=0.05)


@pytest.mark.parametrize("values", [np.nan, np.inf, 5.0])
def test_a_volume_without_anything_is_measured_too(values: float) -> None:
    found = measure_volume(Volume(np.full((6, 7, 8), values), Geometry.from_spacing((6, 7, 8))))
    assert found.section_cm2 == 0
    assert found.body_mm == (0, 0, 0)
    assert np.isfinite(dataclasses.astuple(found.channels[0])).all()


def test_a_large_volume_is_measured_from_few_voxels() -> None:
    reads = []

    class Lazy:
        """An array of a whole body that is not in memory."""

        ndim, shape = 3, (2000, 512, 512)

        def __getitem__(self, steps: tuple[slice, ...]) -> np.ndarray:
            reads.append([len(range(*step.indices(n))) for step, n in zip(steps, self.shape, strict=True)])
            return np.zeros(reads[-1], np.int16)

    from napari_fmseg.models.measures import measure

    start = time.perf_counter()
    measure([Lazy()], Geometry.from_spacing(Lazy.shape), {})
    assert time.perf_counter() - start < 30  # it must not read half a billion voxels
    assert len(reads) == 1
    assert np.prod(reads[0]) <= 48**3


def test_a_card_keeps_the_ranges_of_its_training_data(body_scan: Any, body_card: Any, tmp_path) -> None:
    card = body_card("ct-head")
    data = card.training_data
    measured = [measure_volume(body_scan("ct-head", 100 + i)) for i in range(6)]
    assert data.n_cases == 6
    assert data.low.section_cm2 == min(one.section_cm2 for one in measured)
    assert data.high.channels[0].high == max(one.channels[0].high for one in measured)
    assert data.low.body_mm == tuple(np.min([one.body_mm for one in measured], 0))
    write_card(card, tmp_path / "card.toml")
    assert read_card(tmp_path / "card.toml").training_data == data


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("n_cases = 6", "n_cases = 0", "n_cases"),
        ("rim = ", "rim = nan #", "finite"),
        ("[[training_data.low.channels]]", "[[training_data.low.others]]", "others"),
        ('channels = [\n    "CT",\n]', 'channels = ["CT", "PET"]', "2"),
    ],
)
def test_training_data_that_make_no_sense_are_refused(body_card: Any, tmp_path, old: str, new: str, told: str) -> None:
    write_card(body_card("ct-head"), tmp_path / "card.toml")
    text = (tmp_path / "card.toml").read_text()
    assert old in text
    (tmp_path / "card.toml").write_text(text.replace(old, new, 1))
    with pytest.raises(UnknownModel, match=told):
        read_card(tmp_path / "card.toml")


def test_ranges_of_several_trainings_become_one(body_scan: Any) -> None:
    parts = [summarise([measure_volume(body_scan("mr-head", i)) for i in (k, k + 1)]) for k in (0, 1)]
    assert join(parts, 3) == dataclasses.replace(summarise([measure_volume(body_scan("mr-head", i)) for i in range(3)]))
    assert join([], 0) is None
    assert summarise([]) is None

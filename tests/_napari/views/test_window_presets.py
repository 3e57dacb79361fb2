"""Windows of intensities suit the kind of image."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("napari")

from napari_fmseg._napari.layers import KEY
from napari_fmseg._napari.views.window_presets import presets_of, range_text


def image(data: np.ndarray, **meta: Any) -> Any:
    from napari.layers import Image

    return Image(data, metadata={KEY: {"meta": meta}})


def test_windows_of_ct_are_those_of_radiology() -> None:
    found = presets_of(image(np.zeros((3, 4, 5), np.int16), modality="CT"))
    width_level = {name: (high - low, (high + low) / 2) for name, (low, high) in found.items()}
    assert width_level == {
        "Soft tissue": (400, 40), "Lung": (1500, -600), "Bone": (1800, 400), "Brain": (80, 40), "Liver": (150, 30),
    }  # fmt: skip


def test_a_ct_without_a_word_for_it_is_known_by_air_and_bone() -> None:
    data = np.full((8, 8, 8), -1000, np.int16)
    data[4:] = 900
    assert "Lung" in presets_of(image(data))


def test_uptake_is_shown_from_0() -> None:
    data = np.random.default_rng(0).random((6, 7, 8)).astype(np.float32)
    assert list(presets_of(image(data, modality="PT", units="SUV"))) == [
        "SUV 0 to 5", "SUV 0 to 7", "SUV 0 to 10", "SUV 0 to 20",
    ]  # fmt: skip
    counts = presets_of(image(1000 * data, modality="PT", units="BQML"))
    assert {low for low, _ in counts.values()} == {0.0}


def test_mr_is_shown_by_its_own_percentiles() -> None:
    data = np.linspace(0, 1000, 1000, dtype=np.float32).reshape(10, 10, 10)
    found = presets_of(image(data, modality="MR"))
    np.testing.assert_allclose(found["Auto"], np.percentile(data, (0.5, 99.5)), rtol=1e-6)
    np.testing.assert_allclose(found["Whole range"], (0, 1000))


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_an_image_of_one_value_has_a_window_that_is_no_point(value: float) -> None:
    for low, high in presets_of(image(np.full((3, 3, 3), value, np.float32))).values():
        assert high > low


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (-1350.0, 150.0, "-1350 to 150"),
        (3.165e-07, 1.0, "0 to 1"),
        (0.0123456, 0.98765, "0.012 to 0.988"),
        (-3e-9, 7.25, "0 to 7.25"),
        (12.3456, 1734567.8, "0 to 1730000"),
        (100.0001, 100.0002, "100.0001 to 100.0002"),
    ],
)
def test_a_range_is_written_as_exactly_as_its_width_needs(low: float, high: float, text: str) -> None:
    assert range_text(low, high) == text


@pytest.mark.parametrize("value", [0.0, -7.5, 1e20, -3e30])
def test_an_image_of_one_value_has_windows_that_can_be_named(value: float) -> None:
    for low, high in presets_of(image(np.full((4, 4, 4), value, np.float32))).values():
        assert low < high
        assert range_text(low, high)

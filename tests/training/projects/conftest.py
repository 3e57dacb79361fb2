from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from napari_fmseg.core.volume import Geometry, LabelMap, Volume
from napari_fmseg.training.projects import Project, init_project

SHAPE = (6, 8, 10)
TURN = np.array([[1, 0, 0], [0, 0.8, -0.6], [0, 0.6, 0.8]])


@pytest.fixture
def image() -> Callable[..., Volume]:
    """Make the image of a seed, on a turned grid."""

    def make(seed: int, channels: int = 1) -> Volume:
        data = np.random.default_rng(seed).normal(100, 30, (channels, *SHAPE)).astype(np.int16)
        grid = Geometry.from_spacing(SHAPE, (3.0, 1.0, 1.5), (5, -7, 9), TURN)
        return Volume(data if channels > 1 else data[0], grid)

    return make


@pytest.fixture
def labels() -> Callable[..., LabelMap]:
    """Make labels: planes 2 and 3 hold a liver with a tumour."""

    def make(names: dict[int, str] | None = None, liver: int = 1, tumour: int = 2) -> LabelMap:
        data = np.zeros(SHAPE, np.uint8)
        data[2:4, 2:7, 2:7] = liver
        data[3, 4:6, 4:6] = tumour
        grid = Geometry.from_spacing(SHAPE, (3.0, 1.0, 1.5), (5, -7, 9), TURN)
        return LabelMap(data, grid, {}, names or {})

    return make


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return init_project(tmp_path / "project", ("liver", "tumour"), channels=("CT",))

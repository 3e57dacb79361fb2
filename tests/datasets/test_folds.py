"""Folds: every case validates once, and nobody changes sides because somebody else came."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from napari_fmseg.core.errors import InvalidRecipe
from napari_fmseg.core.volume import Geometry, Volume
from napari_fmseg.datasets.case import Case
from napari_fmseg.datasets.folds import folds
from napari_fmseg.io import write_volume


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    folder, rng = tmp_path_factory.mktemp("folds"), np.random.default_rng(3)
    found = []
    for i in range(24):
        data = rng.normal(size=(3, 4, 5)).astype(np.float32)
        path = write_volume(Volume(data, Geometry.from_spacing(data.shape, (2, 1, 1))), folder / f"c{i:02}.nii.gz")
        found.append(Case(f"c{i:02}", (path,)))
    return found


def place(found: tuple[tuple[Case, ...], ...]) -> dict[str, int]:
    return {case.name: i for i, fold in enumerate(found) for case in fold}


@pytest.mark.parametrize("n", [2, 3, 5])
def test_every_case_is_in_one_fold_and_no_fold_is_empty(cases: list[Case], n: int) -> None:
    for few in (cases, cases[:n], cases[: n + 1]):
        found = folds(few, n)
        assert len(found) == n
        assert all(found)
        assert sorted(case.name for fold in found for case in fold) == [case.name for case in few]


def test_cases_keep_their_fold_when_others_are_added_or_the_order_changes(cases: list[Case]) -> None:
    before, after = place(folds(cases[:18], 3)), place(folds(cases, 3))
    assert before == {name: after[name] for name in before}
    assert place(folds(cases[::-1], 3)) == after


def test_the_same_image_under_another_name_and_format_is_in_the_same_fold(cases: list[Case], tmp_path: Path) -> None:
    again = Case("again", (Path(shutil.copy(cases[7].images[0], tmp_path / "other.nii.gz")),))
    found = place(folds([*cases, again], 5))
    assert found["again"] == found["c07"]


def test_fewer_images_than_folds_are_refused(cases: list[Case]) -> None:
    with pytest.raises(InvalidRecipe, match="2 different images cannot make 3 folds"):
        folds([*cases[:2], cases[0]], 3)
    with pytest.raises(InvalidRecipe, match="at least 2"):
        folds(cases, 1)

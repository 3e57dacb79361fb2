"""Cases of a folder in nnU-Net's raw layout."""

from __future__ import annotations

import dataclasses
import glob
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from napari_fmseg.core.errors import InvalidRecipe
from napari_fmseg.datasets.case import IGNORE_NAME, Case, _case_of, _stem
from napari_fmseg.datasets.dataset_json import CaseEntry, as_dataset_table, labels_in, read_dataset_table

__all__ = ["cases_of", "find_unlabelled", "pair_by_name"]


def cases_of(folder: Path | str, holdout: tuple[str, ...] = ()) -> tuple[dict[int, str], list[Case], list[Case]]:
    """Find the cases of a dataset folder.

    Understands the nnU-Net raw layout (imagesTr/NAME_0000.nii.gz per channel, labelsTr/NAME.nii.gz) and case lists
    `training` and `validation` in dataset.json. Where cases were labelled with some of the classes only, `classes` in
    dataset.json says with which: ``{"anna": ["liver"]}``; or they are listed apart, as `training_partial` and
    `validation_partial`, each entry with its `classes`.

    The split of a project is its own. Nothing is written: what a training learns from is noted when it starts.

    Parameters
    ----------
    folder
        With a dataset.json.
    holdout
        Names of the cases for validation; else the list in dataset.json, else every fifth case by name.

    Returns
    -------
    tuple
        Class names by the label in the files, training cases, validation cases.

    Raises
    ------
    InvalidRecipe
        If there is no dataset.json, no labelled case, or an unknown name in `holdout`.
    """
    folder = Path(folder)
    if (folder / "fmseg" / "project.json").exists():  # a project has its own, locked split
        from napari_fmseg.datasets.projects.training_plan import training_and_validation_cases

        return training_and_validation_cases(folder, holdout)
    try:
        facts = as_dataset_table(read_dataset_table(folder))
        if any(isinstance(value, tuple) for value in facts.labels.values()):
            raise ValueError("labels has regions, of several numbers each, which cannot be learned here")
        known, ignore = labels_in(facts.labels)
        labels = dict(sorted({**known, **({} if ignore is None else {ignore: IGNORE_NAME})}.items()))
        training, validation = (
            (*facts.training, *facts.training_partial),
            (*facts.validation, *facts.validation_partial),
        )
        listed = [_case_of(e, folder) for e in training if isinstance(e, CaseEntry)]
        held = [_case_of(e, folder) for e in validation if isinstance(e, CaseEntry)]
        partly = facts.classes if isinstance(facts.classes, Mapping) else {}
    except (OSError, ValueError) as error:
        raise InvalidRecipe(
            f"{folder} is not a dataset: {error}. Expected a dataset.json with 'labels' as in the nnU-Net raw layout."
        ) from error
    # nnU-Net's own lists name files without the number of the channel: none of them is there.
    by_name = pair_by_name(folder / "imagesTr", folder / "labelsTr") if all(map(_is_lost, listed)) else []
    if not by_name:
        _check_lists(listed, held, folder, split=bool(holdout or held))
    cases = by_name or listed
    cases = [c if c.classes else dataclasses.replace(c, classes=partly.get(c.name, ())) for c in cases]
    held = [c if c.classes else dataclasses.replace(c, classes=partly.get(c.name, ())) for c in held]
    cases = [c for c in cases if c.labels is not None]
    if not cases:
        raise InvalidRecipe(
            f"No labelled case in {folder}. Expected imagesTr/NAME_0000.nii.gz and labelsTr/NAME.nii.gz."
        )
    if holdout:
        everyone = {c.name: c for c in [*cases, *held]}
        unknown = sorted(set(holdout) - everyone.keys())
        if unknown:
            raise InvalidRecipe(f"These cases are held out and not in {folder}: {', '.join(unknown[:5])}.")
        cases, held = [c for n, c in everyone.items() if n not in holdout], [everyone[n] for n in holdout]
    elif held:
        names = {c.name for c in held}
        cases = [c for c in cases if c.name not in names]
    else:
        cases = sorted(cases, key=lambda c: c.name)
        held = cases[4::5]
        cases = [c for c in cases if c not in held]
    if not cases:
        raise InvalidRecipe(f"All labelled cases of {folder} are held out; none is left to train on.")
    return labels, cases, held


def _check_lists(listed: Sequence[Case], held: Sequence[Case], folder: Path, *, split: bool) -> None:
    """Refuse listed cases without their images and, where some validate, several of one name."""
    lost = [case for case in listed if _is_lost(case)]
    if lost:
        path = next(path for path in lost[0].images if not os.path.exists(path))
        raise InvalidRecipe(
            f"{len(lost)} of {len(listed)} training cases in {folder / 'dataset.json'} have no image, such as {path}. "
            "Restore it, or take the case out of the list."
        )
    names = Counter(name for name, _ in {(case.name, case.images) for case in (*listed, *held)})
    twice = [name for name, n in names.items() if n > 1]
    if twice and split:
        raise InvalidRecipe(
            f"Several cases in {folder / 'dataset.json'} are called {twice[0]!r}. Give each of them a name of its own: "
            '"case".'
        )


def _is_lost(case: Case) -> bool:
    return not all(map(os.path.exists, case.images))


def find_unlabelled(folder: Path | str) -> list[Case]:
    """Find the cases of a dataset folder that nobody labelled: those that its dataset.json lists as ``unlabelled``.

    An entry is a table, as of a labelled case, or the path of an image.

    Of a project they are all its cases without labels whose image is not held out.

    Raises
    ------
    InvalidRecipe
        If dataset.json cannot be read.
    """
    folder = Path(folder)
    if (folder / "fmseg" / "project.json").exists():
        from napari_fmseg.datasets.projects.training_plan import find_unlabelled_cases

        return find_unlabelled_cases(folder)
    try:
        facts = as_dataset_table(read_dataset_table(folder))
        return [_case_of(CaseEntry(image=e) if isinstance(e, str) else e, folder) for e in facts.unlabelled]
    except (OSError, ValueError) as error:
        raise InvalidRecipe(f"{folder} is not a dataset: {error}.") from error


def pair_by_name(images: Path, labels: Path) -> list[Case]:
    """Find cases whose labels have a file called as their image, or as their images without _0000, _0001...

    Parameters
    ----------
    images, labels
        Two folders.
    """
    cases = []
    for label in sorted(labels.glob("*")):
        if label.name.startswith("."):  # what macOS leaves behind
            continue
        name = _stem(label)
        known = glob.escape(name)
        files = tuple(sorted(images.glob(f"{known}_[0-9][0-9][0-9][0-9].*")))
        files = files or tuple(p for p in sorted(images.glob(f"{known}.*")) if _stem(p) == name)
        if files:
            cases.append(Case(name, files, label))
    return cases

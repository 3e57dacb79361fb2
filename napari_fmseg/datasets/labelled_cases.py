"""Labelled cases of a folder, to measure a model on: nnU-Net's layout, ours, as published, or images beside labels.

Nothing is noted as learned from, and nothing is written.
"""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path

from napari_fmseg.core.errors import FmsegError, InvalidRecipe
from napari_fmseg.datasets.case import IGNORE_NAME, Case, case_from
from napari_fmseg.datasets.nnunet_json import DatasetInfo, find_cases, read_facts
from napari_fmseg.datasets.nnunet_raw import cases_of, pair_by_name
from napari_fmseg.datasets.projects.project import open_project
from napari_fmseg.datasets.projects.training_plan import training_plan
from napari_fmseg.io import suffix_of

__all__ = ["PARTS", "labelled_cases", "unlabelled_images"]

PARTS = ("validation", "training", "test", "all")
_FOLDERS = {
    "training": (("imagesTr", "labelsTr"),),
    "validation": (("imagesVal", "labelsVal"),),
    "test": (("imagesTs", "labelsTs"),),
}
_PLAIN = (("images", "labels"), ("image", "label"))


def labelled_cases(
    folder: Path, part: str = "validation", labels: Path | None = None
) -> tuple[dict[int, str], list[Case]]:
    """Find labelled cases.

    Parameters
    ----------
    folder
        A project; a dataset in nnU-Net's raw layout; a folder with imagesVal and labelsVal (Tr and Ts for the other
        parts), or with images and labels; or, with `labels`, a folder of images.
    part
        ``"validation"`` (a project's held-out cases, a dataset's own list, else every fifth case), ``"training"``,
        ``"test"`` (the list of that name in dataset.json, else imagesTs with labelsTs) or ``"all"`` (the first two).
    labels
        A folder of labels whose files are called as the images.

    Returns
    -------
    tuple
        Class names by the number in the files, {} where nobody tells; the cases.

    Raises
    ------
    FmsegError
        If there is no such case, or a test case is for training or validation, too.
    """
    names, found = _find(folder, part, labels)
    cases = [case for case in found if case.labels is not None]
    if cases:
        return names, cases
    where = f"{folder} and {labels}" if labels is not None else f"{folder} ({part})"
    if part == "test" and labels is None:
        raise FmsegError(
            f"There is no labelled case in {where}. Expected images with labels in the list 'test' of dataset.json, or "
            "imagesTs and labelsTs. Choose another part, or add the labels."
        )
    raise FmsegError(
        f"There is no labelled case in {where}. Expected a dataset.json with imagesTr and labelsTr, or folders "
        "images and labels whose files have the same names; or name the folder of labels, or another part."
    )


def unlabelled_images(folder: Path, part: str = "validation", labels: Path | None = None) -> tuple[str, ...]:
    """Name the images of a part that have no labels, so that `labelled_cases` leaves them out; none of a project.

    Parameters
    ----------
    folder, part, labels
        As for `labelled_cases`.
    """
    return tuple(case.name for case in _find(folder, part, labels)[1] if case.labels is None)


def _find(folder: Path, part: str, labels: Path | None) -> tuple[dict[int, str], list[Case]]:
    """Return class names and all cases of a part, with labels or without."""
    if part not in PARTS:
        raise FmsegError(f"There is no part {part!r} of a folder. Choose one of: {', '.join(PARTS)}.")
    if labels is not None:
        return {}, _cases_in_folders(folder, labels)
    if not (folder / "dataset.json").exists():
        return {}, [case for pair in _pairs(folder, part) for case in _cases_in_folders(*pair)]
    if part == "test":
        return _test_cases(folder)
    if (folder / "fmseg" / "project.json").exists():
        plan = training_plan(open_project(folder))
        ignored = {} if plan.ignore is None else {plan.ignore: IGNORE_NAME}
        return {**plan.names, **ignored}, _of_part(part, list(plan.training), list(plan.validation))
    return _dataset_cases(folder, part)


def _pairs(folder: Path, part: str) -> list[tuple[Path, Path]]:
    """Return the folders of images and of labels where there is no dataset.json."""
    parts = ("training", "validation") if part == "all" else (part,)
    wanted = [pair for name in parts for pair in _FOLDERS[name]]
    if not any((folder / truths).is_dir() for pairs in _FOLDERS.values() for _, truths in pairs):
        wanted = list(_PLAIN)
    return [(folder / images, folder / truths) for images, truths in wanted if (folder / truths).is_dir()]


def _of_part(part: str, training: list[Case], validation: list[Case]) -> list[Case]:
    return training + validation if part == "all" else {"training": training, "validation": validation}[part]


def _dataset_cases(folder: Path, part: str) -> tuple[dict[int, str], list[Case]]:
    """Return training or validation cases of a dataset that is no project."""
    facts = read_facts(folder)
    training, validation = _cases_in_list(folder, facts, "training"), _cases_in_list(folder, facts, "validation")
    own = validation or _cases_in_folders(folder / "imagesVal", folder / "labelsVal")
    try:
        names, learned, held = cases_of(folder)
    except InvalidRecipe:  # nothing to learn from, but perhaps something to measure on
        return _names_of(facts), _of_part(part, training, own)
    if own and not validation:  # every fifth case is held out only where nothing else is
        learned, held = learned + held, own
    known = {_place(path) for case in (*learned, *held) for path in case.images}
    rest = [case for case in (*training, *_cases_in_folders(folder / "imagesTr", folder / "labelsTr"))
            if case.labels is None and _place(case.images[0]) not in known]  # fmt: skip
    rest = list({_place(case.images[0]): case for case in rest}.values())
    return names, _of_part(part, learned, held) + (rest if part != "validation" or not own else [])


def _test_cases(folder: Path) -> tuple[dict[int, str], list[Case]]:
    """Return the test cases of a dataset or a project: its own list, else imagesTs with labelsTs."""
    facts = read_facts(folder)
    pairs = _cases_in_folders(folder / "imagesTs", folder / "labelsTs") if (folder / "labelsTs").is_dir() else []
    labels = {_place(case.images[0]): case.labels for case in pairs}
    cases = [case if case.labels else dataclasses.replace(case, labels=labels.get(_place(case.images[0])))
             for case in _cases_in_list(folder, facts, "test")] or pairs  # fmt: skip
    learned = {_place(path) for files in find_cases(folder, facts).values() if files.labels for path in files.images}
    both = [case.name for case in cases if any(_place(path) in learned for path in case.images)]
    if both:
        raise FmsegError(
            f"{len(both)} test case(s) of {folder / 'dataset.json'} are for training or validation, too, such as "
            f"{both[0]}. A model may have learned from them. Take them out of one of the lists."
        )
    return _names_of(facts), cases


def _cases_in_list(folder: Path, facts: DatasetInfo, part: str) -> list[Case]:
    """Return the cases that dataset.json lists for a part; the Decathlon lists tests as bare paths of images."""
    try:
        entries = [{"image": entry} if isinstance(entry, str) and part == "test" else entry
                   for entry in facts.table.get(part, ())]  # fmt: skip
        cases = [case_from(entry, folder) for entry in entries if not isinstance(entry, str)]
    except (TypeError, ValueError, AttributeError) as error:
        raise FmsegError(
            f"The list {part!r} of {folder / 'dataset.json'} cannot be understood: {error}. Expected entries such as "
            '{"image": "imagesTs/a.nii.gz", "label": "labelsTs/a.nii.gz"}.'
        ) from error
    return [dataclasses.replace(case, classes=case.classes or facts.classes_of(case.name)) for case in cases]


def _names_of(facts: DatasetInfo) -> dict[int, str]:
    return {**facts.labels, **({} if facts.ignore is None else {facts.ignore: IGNORE_NAME})}


def _cases_in_folders(images: Path, labels: Path) -> list[Case]:
    """Find the cases of two folders, those without labels last."""
    cases = pair_by_name(images, labels)
    known = {path for case in cases for path in case.images}
    rest: dict[str, list[Path]] = {}
    for path in sorted(images.iterdir()) if images.is_dir() else ():
        suffix = suffix_of(path)
        if suffix and path not in known and not path.name.startswith(".") and not suffix.startswith(".img"):
            rest.setdefault(re.sub(r"_\d{4}$", "", path.name[: -len(suffix)]), []).append(path)
    return cases + [Case(name, tuple(paths), None) for name, paths in rest.items()]


def _place(path: Path) -> str:
    return os.path.realpath(path)

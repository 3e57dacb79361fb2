"""Labelled cases of a folder, to measure a model on: nnU-Net's layout, ours, as published, or images beside labels.

Nothing is noted as learned from, and nothing is written.
"""

from __future__ import annotations

from pathlib import Path

from napari_fmseg.errors import FmsegError, InvalidRecipe
from napari_fmseg.training.projects import open_project, training_plan
from napari_fmseg.training.recipe import IGNORE_NAME, Case, cases_of, paired

__all__ = ["PARTS", "labelled_cases"]

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
        ``"test"`` or ``"all"`` (the first two).
    labels
        A folder of labels whose files are called as the images.

    Returns
    -------
    tuple
        Class names by the number in the files, {} where nobody tells; the cases.

    Raises
    ------
    FmsegError
        If there is no such case.
    """
    if part not in PARTS:
        raise FmsegError(f"There is no part {part!r} of a folder. Choose one of: {', '.join(PARTS)}.")
    names: dict[int, str] = {}
    if labels is not None:
        cases = paired(folder, labels)
    elif (folder / "dataset.json").exists() and part != "test":
        names, found = _dataset(folder)
        cases = found["training"] + found["validation"] if part == "all" else found[part]
    else:
        if (folder / "dataset.json").exists():
            names = _dataset(folder)[0]
        wanted = (*_FOLDERS["training"], *_FOLDERS["validation"]) if part == "all" else _FOLDERS[part]
        pairs = [(folder / a, folder / b) for a, b in (*wanted, *_PLAIN) if (folder / b).is_dir()]
        cases = [case for images, truths in pairs for case in paired(images, truths)]
    if not cases:
        where = f"{folder} and {labels}" if labels is not None else f"{folder} ({part})"
        raise FmsegError(
            f"There is no labelled case in {where}. Expected a dataset.json with imagesTr and labelsTr, or folders "
            "images and labels whose files have the same names; or name the folder of labels, or another part."
        )
    return names, cases


def _dataset(folder: Path) -> tuple[dict[int, str], dict[str, list[Case]]]:
    """Class names, training and validation cases of a project or a dataset."""
    if (folder / "fmseg" / "project.json").exists():
        plan = training_plan(open_project(folder))
        ignored = {} if plan.ignore is None else {plan.ignore: IGNORE_NAME}
        return {**plan.names, **ignored}, {"training": list(plan.training), "validation": list(plan.validation)}
    try:
        names, training, held = cases_of(folder)
    except InvalidRecipe:
        if not any((folder / sub).is_dir() for pairs in _FOLDERS.values() for _, sub in pairs):
            raise
        return {}, {"training": [], "validation": []}
    return names, {"training": training, "validation": held}

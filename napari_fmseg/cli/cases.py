"""The commands about one case or one class of a project: label history, renaming, excluding and removing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Annotated

from tyro.conf import Positional, arg

from napari_fmseg.cli.console import CaseName, Json, ProjectFolder, say, table, write_json
from napari_fmseg.training.projects import (
    exclude_case,
    include_case,
    label_history,
    labels_revision,
    open_project,
    publish,
    remove_case,
    rename_case,
    rename_class,
    restore_labels,
)

__all__ = ["CASE_COMMANDS"]


def history(folder: ProjectFolder, case: CaseName, /, *, as_json: Json = False) -> int:
    """List the present and earlier labels of a case, and the revision of the present ones."""
    project = open_project(folder)
    rows, revision = label_history(project, case), labels_revision(project, case)
    if as_json:
        write_json({"labels": [dataclasses.asdict(row) for row in rows], "revision": revision})
        return 0
    say(table(("NUMBER", "SAVED (UTC)", "CLASSES", ""), [
        (str(row.number), row.changed[:16] or "-", ", ".join(row.classes) or "-", "now" if row.present else "")
        for row in rows
    ]))  # fmt: skip
    say(f"revision: {revision or '-'}")
    return 0


def restore(folder: ProjectFolder, case: CaseName, /, *, number: int = 0) -> int:
    """Restore earlier labels of a case; the present ones stay in its history.

    Parameters
    ----------
    number
        Number of the labels, as `fmseg project history` lists them; 0 takes the latest of the earlier ones.
    """
    project = restore_labels(open_project(folder), case, number - 1)
    say(f"{case}: the earlier labels are in use again, as number {label_history(project, case)[-1].number}")
    return 0


def remove(folder: ProjectFolder, case: CaseName, /, *, with_labels: bool = False) -> int:
    """Delete a case from the project: image, labels and history. A linked image stays where it is.

    Parameters
    ----------
    with_labels
        Remove it although it has labels.
    """
    remove_case(open_project(folder), case, with_labels=with_labels)
    say(f"{case} was removed; if its image is added again, it gets the role that it had")
    return 0


def exclude(folder: ProjectFolder, case: CaseName, /) -> int:
    """Exclude a case from training and scoring; its files stay."""
    exclude_case(open_project(folder), case)
    say(f"{case} is excluded until `fmseg project include` includes it again")
    return 0


def include(folder: ProjectFolder, case: CaseName, /) -> int:
    """Include an excluded case again."""
    include_case(open_project(folder), case)
    say(f"{case} takes part again")
    return 0


def rename(folder: ProjectFolder, case: CaseName, new: Positional[Annotated[str, arg(metavar="NEW")]], /) -> int:
    """Call a case otherwise; its role in the split stays.

    Parameters
    ----------
    new
        Its new name; never a patient's.
    """
    rename_case(open_project(folder), case, new)
    say(f"{case} is called {new} now")
    return 0


def rename_a_class(
    folder: ProjectFolder,
    old: Positional[Annotated[str, arg(metavar="CLASS")]],
    new: Positional[Annotated[str, arg(metavar="NEW")]],
    /,
) -> int:
    """Call a class otherwise, in the labels and in the models; its number stays.

    Parameters
    ----------
    old
        Its name.
    new
        Its new name.
    """
    project = rename_class(open_project(folder), old, new)
    if project.index.used:
        publish(project)
    say(f"{old} is called {new} now; classes: {', '.join(project.facts.numbers)}")
    return 0


CASE_COMMANDS: dict[str, Callable[..., int]] = {
    "history": history,
    "restore": restore,
    "exclude": exclude,
    "include": include,
    "rename": rename,
    "rename-class": rename_a_class,
    "remove": remove,
}

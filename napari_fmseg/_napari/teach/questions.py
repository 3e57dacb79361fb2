"""What the Teach dock asks before it stores labels: how much was looked at, and what a class is called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from qtpy.QtWidgets import QWidget

from napari_fmseg._napari.common.dialogs import ask, choose
from napari_fmseg.core.volume import LabelMap
from napari_fmseg.training.projects import PaintedSlices, Project

__all__ = ["ClassNames", "ask_classes", "ask_part", "ask_to_replace"]

_OFFERED = 5  # classes of the project that one of the labels may be


@dataclass(frozen=True)
class ClassNames:
    """What becomes of classes that a project does not have: others get another name, and some are new.

    Attributes
    ----------
    renamed
        Classes of the project that are called otherwise from now on.
    mapped
        Classes of these labels, and the class of the project that each is.
    new
        Classes that the project gets.
    """

    renamed: Mapping[str, str] = field(default_factory=dict)
    mapped: Mapping[str, str] = field(default_factory=dict)
    new: tuple[str, ...] = ()

    def rename_in(self, labels: LabelMap) -> LabelMap:
        """Return labels whose classes are called as in the project."""
        return replace(labels, names={value: self.mapped.get(name, name) for value, name in labels.names.items()})


def ask_part(parent: QWidget, labels: LabelMap) -> str | None:
    """Show a question on how labels with few painted slices are meant.

    Returns
    -------
    str or None
        What was not labelled, see `LabelOptions`: ``"nothing"`` without a question where most slices have labels;
        None to add nothing.
    """
    found = PaintedSlices.of(labels.data, labels.geometry)
    if not found.look_partial:
        return "nothing"
    answer = choose(
        parent,
        "Was the whole volume labelled?",
        f"{found.painted} of {found.total} slices have labels. If the others were looked at and hold no structure, the "
        "whole volume was labelled. If not, only the painted slices count; the others are neither used as "
        "background nor measured.",
        ("Only the painted slices", "The whole volume"),
    )
    return None if answer is None else ("empty-slices", "nothing")[answer]


def ask_classes(parent: QWidget, labels: LabelMap, project: Project) -> ClassNames | None:
    """Show a question about classes of labels that a project does not have; None to add nothing.

    One that has the number of a class of the project which the labels do not name is likely that class under another
    name.
    """
    known = {name.casefold() for name in project.facts.numbers} | {"ignore", "background"}
    there = set(np.unique(labels.data).tolist())
    named = {name.casefold() for name in labels.names.values()}
    renamed: dict[str, str] = {}
    mapped: dict[str, str] = {}
    new: list[str] = []
    unasked: list[str] = []
    for value, name in labels.names.items():
        if value not in there or name.casefold() in known:
            continue
        own = project.facts.labels.get(value, "")
        if not own or own.casefold() in named:
            free = [one for one in project.facts.numbers if one.casefold() not in named and one not in mapped.values()]
            found = _ask_which(parent, name, free[:_OFFERED]) if free else name
            if found is None:
                return None
            if found == name:
                new.append(name)
                unasked += [] if free else [name]
            else:
                mapped[name] = found
            continue
        answer = choose(
            parent,
            f"Is {name} the structure {own}?",
            f"The labels call number {value} {name}, and the project calls it {own}. It can be called {name} from now "
            "on, in every case and model; or it is a new structure, which the model is trained on from this case on.",
            (f"Call {own} {name} from now on", f"Add {name} as a new structure", f"Take it for {own} in these labels"),
        )
        if answer is None:
            return None
        if answer == 0:
            renamed[own] = name
        elif answer == 1:
            new.append(name)
        else:
            mapped[name] = own
    if unasked and not _agrees_to_new(parent, unasked):
        return None
    return ClassNames(renamed, mapped, tuple(new))


def _ask_which(parent: QWidget, name: str, free: list[str]) -> str | None:
    """Show a question which class of the project a class of the labels is; its own name for a new one, None to stop."""
    answer = choose(
        parent,
        f"Which structure is {name}?",
        f"The labels hold {name}, which the project does not have. It may be a structure of the project under another "
        "name: then it is stored as that one. Or it is a new structure, which the model is trained on from this case "
        "on.",
        (f"Add {name} as a new structure", *(f"It is {one}" for one in free)),
    )
    return None if answer is None else (name, *free)[answer]


def _agrees_to_new(parent: QWidget, new: list[str]) -> bool:
    return ask(
        parent,
        "Add new classes to the project?",
        f"The labels hold {', '.join(new)}, which the project does not have. The model will learn it from this "
        "case on; of the cases before, nobody has said whether they have it.",
        "Add",
        "Cancel",
    )


def ask_to_replace(parent: QWidget, text: str) -> bool:
    """Show a question whether labels that somebody else saved are to be replaced."""
    return ask(
        parent,
        "Replace the labels that somebody else saved?",
        f"{text.partition('. ')[0]}. Yours can take their place; theirs then stay in the history of the case (More, "
        "Earlier labels), from where they can be seen and taken back.",
        "Replace them",
        "Keep theirs",
    )

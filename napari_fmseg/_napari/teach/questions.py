"""What the Teach dock asks before it stores labels: how much was looked at, and what a class is called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from qtpy.QtWidgets import QWidget

from napari_fmseg._napari.common.dialogs import ask, choose
from napari_fmseg.core.volume import LabelMap
from napari_fmseg.training.projects import PaintedSlices, Project

__all__ = ["ClassNames", "ask_classes", "ask_part", "ask_to_replace"]


@dataclass(frozen=True)
class ClassNames:
    """What becomes of classes that a project does not have: others get another name, and some are new."""

    renamed: Mapping[str, str] = field(default_factory=dict)
    new: tuple[str, ...] = ()


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
    renamed, new = {}, []
    for value, name in labels.names.items():
        if value not in there or name.casefold() in known:
            continue
        own = project.facts.labels.get(value, "")
        if not own or own.casefold() in named:
            new.append(name)
            continue
        answer = choose(
            parent,
            f"Is {name} the structure {own}?",
            f"The labels call number {value} {name}, and the project calls it {own}. It can be called {name} from now "
            "on, in every case and model; or it is a new structure, which the model is trained on from this case on.",
            (f"Call {own} {name} from now on", f"Add {name} as a new structure"),
        )
        if answer is None:
            return None
        if answer == 0:
            renamed[own] = name
        else:
            new.append(name)
    if new and not _agrees_to_new(parent, new):
        return None
    return ClassNames(renamed, tuple(new))


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

"""What the models of a project are called: a name that no other project has, in letters that every system takes."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection

from napari_fmseg.core.errors import FmsegError
from napari_fmseg.datasets.projects.project import Project
from napari_fmseg.datasets.projects.transaction import STATE_DIR
from napari_fmseg.models.registry import find_card

__all__ = ["MODELS", "free_model_name", "model_name"]

_LETTERS = str.maketrans({"ß": "ss", "æ": "ae", "Æ": "Ae", "ø": "o", "Ø": "O", "œ": "oe", "ł": "l", "Ł": "L", "đ": "d"})
_ID_DIGITS = 6

MODELS = f"{STATE_DIR}/models"
"""Where the versions of a project lie, each in a folder with its number."""


def model_name(project: Project) -> str:
    """Name the next model of a project: as its last version, else its folder's name in ASCII and a part of its id.

    Two projects of one name, and names that have no ASCII letter at all, give different names.
    """
    versions = [p for p in (project.folder / MODELS).glob("*/*.toml") if p.parent.name.isdigit()]
    if versions:
        return max(versions, key=lambda path: int(path.parent.name)).stem
    plain = unicodedata.normalize("NFKD", project.folder.name.translate(_LETTERS)).encode("ascii", "ignore").decode()
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", plain).strip("-._") or "project"
    return f"{stem}-{project.index.id[:_ID_DIGITS]}" if project.index.id else stem


def free_model_name(name: str, own: Collection[str]) -> str:
    """Return `name`, or with a number after it where a model of others is called so.

    Parameters
    ----------
    name
        As it should be.
    own
        Hashes of the weights that may be replaced.
    """
    number, free = 1, name
    while True:
        try:
            there = find_card(free)
        except FmsegError:
            return free
        if there.sha256 in own:
            return free
        number += 1
        free = f"{name}-{number}"

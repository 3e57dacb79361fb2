"""Terms of a model's weights: shown before the first use, remembered afterwards."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from napari_fmseg.models.card import ModelCard
from napari_fmseg.models.folders import user_models_folder

__all__ = ["remember_terms", "unread_terms"]


def unread_terms(card: ModelCard) -> str:
    """Return the terms that the user has not seen yet, "" if there are none or they were seen.

    Only a model with a `restriction` has terms to see: its data forbid something beyond the usual. When licence or
    restriction change, they are shown again.
    """
    if not card.restriction or _read_accepted().get(card.name) == _mark(card):
        return ""
    return f"{card.title} ({card.name}), licence: {card.licence or 'not stated'}.\n{card.restriction}"


def remember_terms(card: ModelCard) -> None:
    """Remember that the terms of `card` were shown; where that cannot be written they are shown again next time."""
    path = _file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**_read_accepted(), card.name: _mark(card)}, indent=1) + "\n", encoding="utf-8")
    except OSError:
        return


def _file() -> Path:
    return user_models_folder().parent / "licences-seen.json"


def _mark(card: ModelCard) -> str:
    return hashlib.sha256(f"{card.licence}\n{card.restriction}".encode()).hexdigest()[:16]


def _read_accepted() -> dict[str, str]:
    try:
        found = json.loads(_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}

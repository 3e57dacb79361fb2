"""Folders in which model cards and weights lie."""

from __future__ import annotations

import os
from pathlib import Path

from napari_fmseg.core.package import shipped

__all__ = ["user_models_folder"]


def user_models_folder() -> Path:
    """Return where this user's own models live: ``FMSEG_HOME``/models, or the platform's data folder."""
    from platformdirs import user_data_path

    home = os.environ.get("FMSEG_HOME")
    return (Path(os.path.expanduser(home)) if home else user_data_path("napari-fmseg", appauthor=False)) / "models"


def _weights_folders() -> list[Path]:
    return [shipped("weights"), shipped("weights") / "research"]


def _card_folders() -> list[Path]:
    """Return the later ones win: a user's own model may replace a shipped one of the same name."""
    own = user_models_folder()
    return [shipped("resources") / "models", shipped("weights") / "research", own]

"""Folders in which model cards and weights lie."""

from __future__ import annotations

import os
from pathlib import Path

from napari_fmseg.core.package import data_folder

__all__ = ["user_models_folder"]


def user_models_folder() -> Path:
    """Return where this user's own models live: ``FMSEG_HOME``/models, or the platform's data folder."""
    from platformdirs import user_data_path

    home = os.environ.get("FMSEG_HOME")
    return (Path(os.path.expanduser(home)) if home else user_data_path("napari-fmseg", appauthor=False)) / "models"


def _weights_folders() -> list[Path]:
    return [data_folder("weights"), data_folder("weights") / "research"]


def _card_folders() -> list[Path]:
    """Return the folders of cards; later ones win, so that a user's model may replace a shipped one."""
    own = user_models_folder()
    return [data_folder("resources") / "models", data_folder("weights") / "research", own]

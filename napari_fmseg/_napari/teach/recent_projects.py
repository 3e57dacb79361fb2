"""The projects that were open last, kept beside the user's own models."""

from __future__ import annotations

import json
from pathlib import Path

from napari_fmseg.core.atomic_write import atomic_write
from napari_fmseg.models.folders import user_models_folder

__all__ = ["recent_projects", "remember"]

_MOST = 10


def recent_projects() -> list[Path]:
    """List the folders that are still there, the last one first."""
    try:
        found = json.loads(_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none yet, or damaged: then nothing is remembered
        return []
    paths = [Path(path) for path in found if isinstance(path, str)] if isinstance(found, list) else []
    return [path for path in paths if (path / "dataset.json").exists()]


def remember(folder: Path) -> None:
    """Put a folder first; a place that cannot be written does no harm."""
    paths = [folder, *(path for path in recent_projects() if path != folder)][:_MOST]
    try:
        _file().parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(_file()) as file:
            file.write(json.dumps([str(path) for path in paths], indent=1).encode())
    except OSError:
        return


def _file() -> Path:
    return user_models_folder().parent / "projects.json"

"""What a run keeps of a case that its model was measured on: a picture, and the labels that the model found.

The files are named by the hash of the case's image, as the names of cases may change.
"""

from __future__ import annotations

from pathlib import Path

from napari_fmseg.datasets.projects.transaction import STATE_DIR

__all__ = ["labels_file", "picture_file", "results_of"]

_FOLDER = "held-out"  # in that of a run


def picture_file(run: Path, image: str) -> Path:
    """Return where the picture of a case lies in the folder of a run."""
    return run / _FOLDER / f"{_stem(image)}.npz"


def labels_file(run: Path, image: str) -> Path:
    """Return where the labels that the model of a run found in a case lie."""
    return run / _FOLDER / f"{_stem(image)}.nii.gz"


def results_of(folder: Path, image: str) -> list[Path]:
    """List such files of all runs of a project; `folder` is the project's."""
    return sorted((folder / STATE_DIR / "runs").glob(f"*/{_FOLDER}/{_stem(image)}.*")) if image else []


def _stem(image: str) -> str:
    return image[:16]

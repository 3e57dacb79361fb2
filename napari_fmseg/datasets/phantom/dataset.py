"""Phantoms as files: a folder to learn from, in the raw layout of nnU-Net."""

from __future__ import annotations

import json
from pathlib import Path

from napari_fmseg.datasets.phantom import Difficulty, phantom_cases
from napari_fmseg.datasets.phantom.viscera import LABELS
from napari_fmseg.io import write_labels, write_volume

__all__ = ["write_phantom_dataset"]


def write_phantom_dataset(
    folder: Path | str, n_train: int, n_val: int, seed: int, *, difficulty: Difficulty | None = None
) -> Path:
    """Write phantoms as a training folder.

    Parameters
    ----------
    folder
        Gets imagesTr/NAME_0000.nii.gz, labelsTr/NAME.nii.gz and dataset.json, whose lists `training` and
        `validation` say which case is for what.
    n_train, n_val
        How many cases to learn from and to check with.
    seed
        Draws the cases; see `phantom_cases`.
    difficulty
        Of all cases; by default mixed.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    UnwritableVolume
        If the place cannot be written.
    """
    folder = Path(folder)
    names = [f"phantom_{i:03d}" for i in range(n_train + n_val)]
    entries = []
    for name, (volume, labels) in zip(names, phantom_cases(len(names), seed, difficulty=difficulty), strict=True):
        image, truth = f"imagesTr/{name}_0000.nii.gz", f"labelsTr/{name}.nii.gz"
        for part in (image, truth):
            (folder / part).parent.mkdir(parents=True, exist_ok=True)
        write_volume(volume, folder / image)
        write_labels(labels, folder / truth)
        entries.append({"case": name, "image": image, "label": truth})
    facts = {
        "name": "phantom CT",
        "description": "Procedural abdominal CT; no patient was scanned.",
        "licence": "Apache-2.0",
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, **{name: value for value, name in LABELS.items()}},
        "numTraining": len(names),
        "file_ending": ".nii.gz",
        "training": entries[:n_train],
        "validation": entries[n_train:],
    }
    (folder / "dataset.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return folder

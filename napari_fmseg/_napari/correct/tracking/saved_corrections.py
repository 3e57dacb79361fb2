"""What was corrected in the labels of a case, as a project keeps it beside them, with the model's answer."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from napari_fmseg._napari.correct.tracking.packed_labels import ANSWER, PackedLabels
from napari_fmseg._napari.correct.tracking.slice_record import CORRECTED, FINISHED
from napari_fmseg._napari.layer_transform import fmseg_metadata
from napari_fmseg.core.errors import FmsegError
from napari_fmseg.core.volume import Geometry

__all__ = ["corrections_in", "pack_corrections"]


def pack_corrections(layer: Any, grid: Geometry) -> bytes | None:
    """Return the content of the file; None where nothing was corrected. `grid` is that of the layer's voxels."""
    known = fmseg_metadata(layer)
    answer = known.get(ANSWER)
    if not isinstance(answer, PackedLabels) or not known.get(CORRECTED):
        return None
    facts = {name: known.get(name) or () for name in (CORRECTED, FINISHED)} | {"affine": grid.affine.tolist()}
    return json.dumps(facts).encode() + b"\n" + answer.to_bytes()


def corrections_in(content: bytes, grid: Geometry) -> dict[str, Any]:
    """Return what a layer's metadata gets from the file; nothing where it is damaged or was of another grid."""
    header, _, rest = content.partition(b"\n")
    try:
        facts = json.loads(header)
        answer = PackedLabels.from_bytes(rest)
        corrected = [(int(axis), int(at), tuple(classes)) for axis, at, classes in facts[CORRECTED]]
        finished = tuple(int(value) for value in facts[FINISHED])
        z, y, x = answer.shape
        there = Geometry((z, y, x), np.array(facts["affine"], float))
    except (FmsegError, ValueError, KeyError, TypeError):
        return {}
    if not there.matches(grid, atol_mm=0.1):
        return {}
    return {CORRECTED: corrected, FINISHED: finished, ANSWER: answer}

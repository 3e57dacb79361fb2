"""Whether a file holds labels or an image: by what its header says, its name, and its values; knows no napari.

A name alone is never believed ("image_without_label.nii.gz"): the values must look like labels, too.
"""

from __future__ import annotations

import json
import re
import zipfile
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_fmseg.core.errors import FmsegError
from napari_fmseg.io import suffix_of

__all__ = ["Hint", "are_labels", "hint_of", "labels_in", "names_beside"]

_WORDS = re.compile(
    r"(?<![a-z])(labels?(?:map)?s?|masks?|segs?|segmentations?|annotations?|contours?|rois?|gt|ground[ _-]?truth|aseg)"
    r"(?![a-z])"
)
_FOLDERS = re.compile(r"(labels?|masks?|segs?|segmentations?|annotations?|gt)(tr|ts|va)?(?![a-z])")
_MANY = 2048  # as many label values as the finest brain atlases use
_FEW = 32  # no image has so few grey values
_SURELY = 8  # values 0 to 7 in flat areas are labels even in a file of no telling name
_SAMPLE = 2_000_000


class Hint(Enum):
    """What speaks for labels before the values are read."""

    NONE = 0
    NAME = 1
    HEADER = 2


def hint_of(path: Path) -> Hint:
    """Return what the header, else the name of a file or of its folder, says.

    A NIfTI's intent or label table, the segment fields of NRRD and MetaImage, and being a DICOM SEG count as the
    header's word.
    """
    if _header_says_labels(path):
        return Hint.HEADER
    name = _inner_name(path)
    parent = path.parent.name.lower()
    return Hint.NAME if _WORDS.search(_spread(name)) or _FOLDERS.match(parent) else Hint.NONE


def _spread(name: str) -> str:
    """Return the part words that are written together: "ctMask01" becomes "ct mask01"."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name).lower()


def _inner_name(path: Path) -> str:
    """Return the name of the file, or of the only volume in a zip."""
    if suffix_of(path) != ".zip":
        return path.name
    try:
        with zipfile.ZipFile(path) as archive:
            inside = [name for name in archive.namelist() if suffix_of(name) and not name.startswith("__MACOSX")]
    except (zipfile.BadZipFile, OSError):
        return path.name
    return Path(inside[0]).name if len(inside) == 1 else path.name


def _header_says_labels(path: Path) -> bool:
    from napari_fmseg.io import segment_metadata
    from napari_fmseg.io.dicom import seg_reader
    from napari_fmseg.io.itk import reader

    suffix = suffix_of(path)
    try:
        if suffix in (".nrrd", ".nhdr", ".mha", ".mhd"):
            return bool(segment_metadata.from_fields(reader.header_fields(path))[0])
        if suffix in (".nii", ".nii.gz", ".hdr", ".hdr.gz"):
            return _nifti_says_labels(path)
        if suffix in ("", ".dcm"):
            return seg_reader.is_seg(path)
    except (FmsegError, OSError):  # reading it says what is wrong
        return False
    return False


def _nifti_says_labels(path: Path) -> bool:
    from napari_fmseg.io.compression import DEFLATE_ERRORS, open_inflated

    try:
        with open_inflated(path) as stream:
            head = stream.read(4096)
    except DEFLATE_ERRORS:
        return False
    if head[344:347] in (b"n+1", b"ni1"):
        intent = head[68:70]
        return 1002 in (int.from_bytes(intent, "little"), int.from_bytes(intent, "big")) or b"<LabelTable" in head
    return b"<LabelTable" in head


def are_labels(data: npt.NDArray[Any], hint: Hint) -> bool:
    """Return whether the values look like labels: whole numbers from 0, few of them, in flat areas.

    Parameters
    ----------
    data
        (z, y, x).
    hint
        The less it says, the stricter the values are looked at.
    """
    if data.ndim != 3 or data.dtype.kind not in "bui":
        return False
    if hint is Hint.HEADER:
        return True
    step = max(1, data.size // _SAMPLE)
    rows = data.reshape(-1, data.shape[-1])[::step]
    values = np.unique(rows)
    if values[0] < 0 or len(values) > _MANY:
        return False
    if hint is Hint.NONE:
        return len(values) > 1 and int(values[-1]) < _SURELY and _flatness(rows) > 0.9
    return len(values) <= _FEW or _flatness(rows) > 0.5


def _flatness(rows: npt.NDArray[Any]) -> float:
    """Return the share of the voxels above 0 whose next one in the row has the same value."""
    here, there = rows[:, :-1], rows[:, 1:]
    inside = here > 0
    count = int(np.count_nonzero(inside))
    return float(np.count_nonzero(inside & (here == there)) / count) if count else 1.0


def labels_in(data: npt.NDArray[Any]) -> list[int]:
    """List the values other than 0 that occur in `data`, ascending."""
    high = int(data.max(initial=0))
    if data.dtype.kind in "bu" and high < 1 << 20:
        found = np.zeros(high + 1, bool)
        for plane in data:  # a plane at a time: bincount wants a wider copy of what it is given
            found |= np.bincount(plane.reshape(-1), minlength=high + 1) > 0
        return [int(value) for value in np.flatnonzero(found) if value]
    return [int(value) for value in np.unique(data) if value]


def names_beside(path: Path) -> dict[int, str]:
    """Read the names of labels from the dataset.json of the data set that a label file belongs to; {} without one.

    Both ways that nnU-Net and the Decathlon write them are understood: {"liver": 1} and {"1": "liver"}.
    """
    for folder in (path.parent, path.parent.parent):
        try:
            table = json.loads((folder / "dataset.json").read_text(encoding="utf-8")).get("labels", {})
            pairs = [(key, value) if isinstance(value, int) else (value, int(key)) for key, value in table.items()]
        except (OSError, ValueError, TypeError, AttributeError):  # none, or not of this kind
            continue
        return {value: str(name) for name, value in pairs if value > 0}
    return {}

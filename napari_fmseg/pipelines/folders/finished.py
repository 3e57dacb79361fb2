"""Whether a volume was segmented already: hashes of the image, the model and the options, in the result's manifest.

A hash names no patient: what it was computed from cannot be computed back. Whether an image is the same is first seen
from the sizes and times of its files, which costs nothing; only where they differ, as after a copy, from the content.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from napari_fmseg.core.errors import FmsegError
from napari_fmseg.core.json_values import plain
from napari_fmseg.io.itk.text_header import data_files, is_header, read_header
from napari_fmseg.io.paths import files_below, format_of, suffix_of
from napari_fmseg.models.card import ModelCard
from napari_fmseg.models.provenance import manifest_path, read_hashes
from napari_fmseg.pipelines import SegmentOptions

__all__ = ["hash_image", "hash_model", "hash_options", "is_finished", "is_result", "stamp_image"]

_DISC = "DICOMDIR"  # the index of a disc: what it lists lies beside it
_WITHOUT_EFFECT = ("device", "strict", "show_stages", "max_memory_gb", "window_batch")  # on the labels


def is_finished(images: Sequence[Path], result: Path, model: str, options: str) -> bool:
    """Return whether `result` is there and was made of these images, with this model and these options.

    The result itself may have been corrected since; that is no reason to replace it.

    Parameters
    ----------
    images
        A file or DICOM folder, or one for each channel.
    result
        The file of the labels.
    model, options
        From `hash_model` and `hash_options`.
    """
    hashes = read_hashes(manifest_path(result))
    if not hashes or not result.is_file() or (hashes.get("model"), hashes.get("options")) != (model, options):
        return False
    try:
        if hashes.get("image_stamp") == stamp_image(images):
            return True
        return bool(hashes.get("image")) and hashes["image"] == hash_image(images)
    except (OSError, FmsegError):  # it is reported when its turn comes
        return False


def is_result(path: Path) -> bool:
    """Return whether a volume is a result of ours: a manifest lies beside it."""
    return read_hashes(manifest_path(path)) is not None


def stamp_image(images: Iterable[Path]) -> str:
    """Hash names, sizes and times of the files of an image."""
    found = hashlib.sha256()
    for image in images:
        for path in _files_of(image):
            facts = path.stat()
            fields = (path.name, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)
            found.update(repr(fields).encode())
    return found.hexdigest()


def hash_image(images: Iterable[Path]) -> str:
    """Hash the content of the files of an image; "" for a DICOM file, in whose folder other series may lie, too."""
    found = hashlib.sha256()
    for image in images:
        if _is_dicom_file(image):
            return ""
        for path in _files_of(image):
            with path.open("rb") as file:
                found.update(hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest()


def hash_model(card: ModelCard) -> str:
    """Hash what the labels depend on of a model: its weights, networks, classes, and how intensities are normalised."""
    weights = card.sha256 or hashlib.sha256(card.weights_path.read_bytes()).hexdigest()
    parts = ("pipeline", "nets", "labels", "channels", "intensity", "settings")
    facts = dataclasses.asdict(card)
    return _hash({**{name: facts[name] for name in parts}, "weights": weights})


def hash_options(options: SegmentOptions, *, series: str | None = None, suv: str = "auto") -> str:
    """Hash what the labels depend on of the options; a device or a limit of memory gives the same ones."""
    facts = {k: v for k, v in dataclasses.asdict(options).items() if k not in _WITHOUT_EFFECT}
    return _hash({**facts, "series": series, "suv": suv})


def _hash(table: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(plain(table), sort_keys=True).encode()).hexdigest()


def _is_dicom_file(image: Path) -> bool:
    return image.is_file() and image.name.upper() != _DISC and format_of(image) == "dicom"


def _files_of(image: Path) -> list[Path]:
    """List the files that an image is read from, in a fixed order."""
    if image.is_dir():
        return files_below(image)
    if image.name.upper() == _DISC:
        return files_below(image.parent)
    if _is_dicom_file(image):  # it stands for its series, whose other files lie beside it
        return sorted(path for path in image.parent.iterdir() if path.is_file())
    if suffix_of(image) in (".nhdr", ".mhd") and is_header(image):
        return [image, *data_files(read_header(image))]
    if suffix_of(image).startswith(".hdr"):
        stem = image.name[: len(image.name) - len(suffix_of(image))]
        return [image, *(p for p in (image.with_name(stem + end) for end in (".img", ".img.gz")) if p.exists())]
    return [image]

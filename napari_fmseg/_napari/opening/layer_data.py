"""Volumes and label maps as napari layer data."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from napari_fmseg._napari.layers import KEY, PET_OVERLAY, LayerData, image_layers, is_pet, labels_layer, meta_of
from napari_fmseg._napari.opening.label_detection import Hint, are_labels, hint_of, labels_in, names_beside
from napari_fmseg.core.errors import FmsegError, UnreadableVolume
from napari_fmseg.core.volume import LabelMap, Volume
from napari_fmseg.io import read_labels, read_volume, suffix_of
from napari_fmseg.io.series_previews import SeriesPreview, preview_series

__all__ = ["distinct", "layers_of", "offers_instead", "overlay_on", "remarks_on"]


_NAMED_LABELS = 4096  # more labels than these get napari's own cycle of colours


_MAX_CHANNELS = 24


_SEARCHED = 24  # files of a folder in which the name of a series is looked for


_SHOWN_CHANNELS = 4  # more are time points or the like: only the first is shown


def layers_of(path: Path | str, *, series: str | None = None, name: str = "") -> list[LayerData]:
    """Read one volume as layer data, in its place: labels where the file holds labels, else images.

    Parameters
    ----------
    path
        As for `napari_fmseg.io.read_volume`.
    series
        Which DICOM series, where there are several.
    name
        Of the layer; by default the scanner's name of the series, else the file's or folder's.

    Returns
    -------
    list
        (data, options, "image" or "labels"), one image per channel.

    Raises
    ------
    UnreadableVolume
        As `read_volume`.
    """
    path = _the_only_volume(Path(path))
    hint = Hint.NONE if series else hint_of(path)
    labels = _labels(path, hint)
    if labels is not None:
        return [_labels_layer(labels, name or _stem(path), str(path))]
    volume = read_volume(path, series=series)
    if volume.meta.get("format") != "DICOM" and are_labels(volume.data, Hint.NONE):
        labels = LabelMap(volume.data, volume.geometry, volume.meta)
        return [_labels_layer(labels, name or _stem(path), str(path))]
    return _images(volume, name or _name(path, volume), str(path))


def offers_instead(path: Path | str, error: FmsegError) -> tuple[SeriesPreview, ...]:
    """List what could be read where reading `path` as one volume failed.

    Raises
    ------
    FmsegError
        `error` again, if there is no choice of several.
    """
    path = Path(path)
    if not (path.is_dir() or suffix_of(path) == ".zip" or path.name.upper() == "DICOMDIR"):
        raise error
    try:
        offers = preview_series(path)
    except FmsegError:
        raise error from None
    if len(offers) < 2:
        raise error
    return offers


def distinct(paths: Iterable[str | os.PathLike[str]]) -> list[str]:
    """Leave out files that stand for a DICOM series which an earlier file stands for."""
    kept: list[str] = []
    seen: set[tuple[str, str]] = set()
    for path in (os.fspath(path) for path in paths):
        uid = _series_of_file(Path(path))
        if uid and (os.path.dirname(path), uid) in seen:
            continue
        seen.add((os.path.dirname(path), uid))
        kept.append(path)
    return kept


def overlay_on(viewer: Any, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return how a PET looks over an image of another kind that the viewer shows already; {} where it is none, or
    alone.

    Parameters
    ----------
    viewer
        A napari viewer.
    metadata
        Of the layer that is to be added.
    """
    recorded = metadata.get(KEY, {})
    if recorded.get("n_channels", 1) > 1 or not is_pet(recorded.get("meta", {})):
        return {}
    shown = [layer for layer in viewer.layers if layer.visible and "n_channels" in layer.metadata.get(KEY, {})]
    return {} if all(is_pet(meta_of(layer)) for layer in shown) else dict(PET_OVERLAY)


def remarks_on(layers: Iterable[LayerData]) -> list[str]:
    """List what the user should know about what was read: what was repaired, what looks odd."""
    remarks: dict[str, None] = {}
    for _, options, _ in layers:
        recorded = options.get("metadata", {}).get(KEY, {})
        meta = recorded.get("meta", {})
        for sentence in (*meta.get("repaired", ()), *meta.get("warnings", ())):
            remarks[f"{Path(recorded.get('source') or options['name']).name}: {sentence}"] = None
    return list(remarks)


def _series_of_file(path: Path) -> str:
    """Return the series of a DICOM file of one slice, "" for anything else."""
    if suffix_of(path) not in ("", ".dcm") or path.name.upper() == "DICOMDIR" or not path.is_file():
        return ""
    from napari_fmseg.io.dicom.slices import headers

    try:
        found = headers([path])
    except FmsegError:
        return ""
    if not found or found[0].tags.get("NumberOfFrames"):
        return ""
    return str(found[0].tags.get("SeriesInstanceUID") or "")


def _the_only_volume(path: Path) -> Path:
    """Return the file that a folder without DICOM images holds, if it is one: its name and header tell more."""
    if not path.is_dir():
        return path
    from napari_fmseg.io import find_volumes
    from napari_fmseg.io.dicom.seg_reader import find_seg
    from napari_fmseg.io.dicom.series import any_images
    from napari_fmseg.io.paths import files_below

    if any_images(files_below(path)):
        return path
    found = find_volumes(path)
    if not found:
        return find_seg(path) or path
    return found[0] if len(found) == 1 else path


def _labels(path: Path, hint: Hint) -> LabelMap | None:
    """Read a file of which something says that it holds labels; None if its values do not."""
    if hint is Hint.NONE:
        return None
    try:
        labels = read_labels(path)
    except UnreadableVolume:
        if hint is Hint.HEADER and suffix_of(path) in ("", ".dcm"):
            raise  # a DICOM SEG that no label map can hold; it is no image either
        return None  # fractions or several channels; if it is damaged, reading it as an image says so
    if labels.meta.get("format") == "DICOM" or not are_labels(labels.data, hint):
        return None
    return labels


def _labels_layer(labels: LabelMap, name: str, source: str) -> LayerData:
    present = labels_in(labels.data)
    if len(present) <= _NAMED_LABELS:
        known = labels.names or names_beside(Path(source))
        names = {value: known.get(value, f"label {value}") for value in sorted({*present, *labels.names} - {0})}
        return labels_layer(replace(labels, names=names), name, source=source)
    data, options, kind = labels_layer(labels, name, source=source)
    del options["colormap"]
    return data, options, kind


def _images(volume: Volume, name: str, source: str) -> list[LayerData]:
    if volume.n_channels > _MAX_CHANNELS:
        left_out = (
            f"It has {volume.n_channels} channels or time points; the first {_MAX_CHANNELS} were opened. "
            "Save the ones you need as a file of their own."
        )
        meta = {**volume.meta, "warnings": [*volume.meta.get("warnings", ()), left_out]}
        volume = Volume(volume.data[:_MAX_CHANNELS], volume.geometry, meta)
    layers = image_layers(volume, name, source=source)
    if len(layers) > _SHOWN_CHANNELS:
        for _, options, _ in layers[1:]:
            options["visible"] = False
            options["colormap"] = "gray"
    return layers


def _stem(path: Path) -> str:
    """Return the name without the suffix of its format."""
    return path.name[: len(path.name) - len(suffix_of(path))] or path.name


def _name(path: Path, volume: Volume) -> str:
    """Name an image: as the scanner called its series, else as the file or folder is called."""
    if volume.meta.get("format") != "DICOM":
        return _stem(path)
    description = _description(path, volume.meta.get("series_uid"))
    if description:
        return description
    if path.is_file() and (path.name.upper() == "DICOMDIR" or _series_of_file(path)):
        return path.absolute().parent.name  # one slice's name says nothing about the series
    return _stem(path)


def _description(path: Path, uid: Any) -> str:
    """Return the SeriesDescription of one of the first files of the series; "" in a zip."""
    from napari_fmseg.io.dicom.first_bytes import is_dicom
    from napari_fmseg.io.dicom.slices import headers
    from napari_fmseg.io.paths import files_below

    if suffix_of(path) == ".zip":
        return ""
    folder = path if path.is_dir() else path.parent
    files = [path] if path.is_file() and path.name.upper() != "DICOMDIR" else files_below(folder)
    for file in [file for file in files[:_SEARCHED] if is_dicom(file)]:
        try:
            found = headers([file])
        except FmsegError:
            continue
        if found and found[0].tags.get("SeriesInstanceUID") == uid:
            return " ".join(str(found[0].tags.get("SeriesDescription") or "").split())
    return ""

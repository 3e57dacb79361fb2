"""From volumes to the data of napari's layers and back; imports no napari, so that it can be tested without a window.

What is opened is listed along the patient's axes first (z to superior, y to posterior, x to left, as near as they go;
no voxel is interpolated), so that the first view is axial whatever the order in the file. All layers of one case share
a frame (see `placing`), so that coarse, cropped and full grids agree. An oblique direction and the order in the file
stay in the metadata, for export.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from napari_fmseg._napari.layer_transform import KEY, Frame, fmseg_metadata, geometry_of, has_spacing, place
from napari_fmseg.core.errors import GeometryMismatch
from napari_fmseg.core.terminology import class_color, label_info
from napari_fmseg.core.volume import NO_SPACING, Geometry, LabelMap, Volume

__all__ = [
    "KEY",
    "PET_OVERLAY",
    "LayerData",
    "along",
    "as_filed",
    "geometry_of",
    "image_layers",
    "is_pet",
    "labels_layer",
    "labels_of",
    "map_layer",
    "meta_of",
    "names_of",
    "place",
    "volume_of",
    "voxels_of",
]

LayerData: TypeAlias = tuple[Any, dict[str, Any], str]
CT_WINDOW_HU = (-160.0, 240.0)  # soft tissue, as radiologists set it for the abdomen
AIR_HU = (-1100.0, -900.0)
SUV_WINDOW = (0.0, 7.0)  # as whole-body PET are read
PET_COLORMAP = "gray_r"  # uptake dark on white
PET_OVERLAY = {"colormap": "hot", "blending": "additive", "opacity": 0.6}  # no uptake leaves what lies below as it is
CHANNEL_COLORMAPS = ("gray", "green", "magenta", "cyan", "yellow", "red", "blue")


def along(volume: Volume, frame: Geometry) -> Volume:
    """List the voxels of `volume` along the axes of `frame`, by transposing and flipping; none is interpolated.

    A stage may be computed with its axes in another order than the image's; napari lines layers up by their axes.

    Parameters
    ----------
    volume
        (z, y, x) or (c, z, y, x); a `LabelMap` stays one.
    frame
        The geometry of the case's image.

    Returns
    -------
    Volume
        The same voxels in the same places; a view.

    Raises
    ------
    GeometryMismatch
        If the two grids are turned against each other by other than right angles.
    """
    turn = np.linalg.solve(
        frame.direction, volume.geometry.direction
    )  # column i: where axis i of the volume runs in the frame
    order = tuple(int(i) for i in np.abs(turn).argmax(1))
    if sorted(order) != [0, 1, 2] or np.abs(turn)[range(3), order].min() < 0.9:
        raise GeometryMismatch("This grid is turned against the image's and cannot be shown on it. Resample it first.")
    flips = tuple(axis for axis in range(3) if turn[axis, order[axis]] < 0)
    if order == (0, 1, 2) and not flips:
        return volume
    to_source = np.zeros((4, 4))
    to_source[3, 3] = 1
    for axis, source in enumerate(order):
        to_source[source, axis] = -1 if axis in flips else 1
        to_source[source, 3] = volume.geometry.shape[source] - 1 if axis in flips else 0
    extra = volume.data.ndim - 3
    data = volume.data.transpose(*range(extra), *(extra + i for i in order))
    data = np.flip(data, tuple(extra + axis for axis in flips))
    z, y, x = (volume.geometry.shape[i] for i in order)
    geometry = Geometry((z, y, x), volume.geometry.affine @ to_source)
    if isinstance(volume, LabelMap):
        return LabelMap(data, geometry, volume.meta, volume.names, volume.colors)
    return Volume(data, geometry, volume.meta)


def image_layers(volume: Volume, name: str, *, source: str = "") -> list[LayerData]:
    """Return one image layer per channel, in its place, with a contrast that shows something.

    Parameters
    ----------
    volume
        (z, y, x) or (c, z, y, x).
    name
        Of the layer; channels get their own name after it.
    source
        File or folder it was read from; export needs it for DICOM. It stays in the layer's metadata.
    """
    filed = volume.geometry
    volume = along(volume, filed.canonical()[0])
    layers: list[LayerData] = []
    for i, data in enumerate(volume.channels):
        meta = _of_channel(volume.meta, i)
        recorded = {
            "geometry": volume.geometry,
            "filed": filed,
            "meta": dict(volume.meta),
            "source": source,
            "channel": i,
            "n_channels": volume.n_channels,
        }
        options = {
            "name": name if volume.n_channels == 1 else f"{name} [{i}]",
            "contrast_limits": window_of(data, meta),
            "colormap": CHANNEL_COLORMAPS[i % len(CHANNEL_COLORMAPS)],
            "rgb": False,  # napari takes a last axis of 3 or 4 voxels for colours unless it is told
            "blending": "translucent_no_depth" if i == 0 else "additive",
            "metadata": {KEY: recorded},
            **place(volume.geometry),
        }
        if is_pet(meta):
            options |= {"colormap": PET_COLORMAP} if i == 0 else PET_OVERLAY
        layers.append((data, options, "image"))
    return layers


def _of_channel(meta: Mapping[str, Any], number: int) -> dict[str, Any]:
    """Return what is known of one channel."""
    own = dict(meta)
    for key, each in (("units", "channel_units"), ("modality", "channel_modalities")):
        if each in meta:
            own[key] = meta[each][number]
    return own


def meta_of(layer: Any) -> dict[str, Any]:
    """Return what the file of an image layer said of it, or of its channel."""
    recorded = fmseg_metadata(layer)
    return _of_channel(recorded.get("meta") or {}, int(recorded.get("channel", 0)))


def is_pet(meta: Mapping[str, Any]) -> bool:
    """Return whether an image is a PET, as its file says."""
    return meta.get("modality") in ("PT", "PET") or meta.get("units") == "SUV"


def window_of(data: npt.NDArray[Any], meta: Mapping[str, Any]) -> tuple[float, float]:
    """Choose contrast limits: the file's own window, those usual for CT and for PET in SUV, else robust percentiles."""
    if meta.get("units") == "SUV":
        return SUV_WINDOW
    centre, width = (float(meta.get(key, 0)) for key in ("window_center", "window_width"))
    if width > 0:
        return (centre - width / 2, centre + width / 2)
    if meta.get("modality") == "CT":
        return CT_WINDOW_HU
    steps = tuple(slice(None, None, max(1, n // 64)) for n in data.shape)
    some = np.asarray(data[steps], np.float32)
    if data.dtype.kind == "i" and AIR_HU[0] <= some.min() <= AIR_HU[1] and some.max() > 300:
        return CT_WINDOW_HU  # a CT in a format that has no word for it: from air to bone
    low, high = (float(v) for v in np.percentile(some, (0.5, 99.5)))
    if high <= low:
        low, high = float(some.min()), float(some.max())
    return (low, high if high > low else low + 1.0)


def _placement(geometry: Geometry, frame: Geometry | Frame | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the arguments that put what is listed along a frame in its place, and what the metadata need for it."""
    if not isinstance(frame, Frame):
        return place(geometry), {"geometry": geometry}
    return frame.place(geometry), {"geometry": geometry, "world": tuple(map(tuple, frame.world.tolist()))}


def _along(volume: Volume, frame: Geometry | Frame | None) -> Volume:
    grid = frame.geometry if isinstance(frame, Frame) else frame
    return along(volume, grid or volume.geometry.canonical()[0])


def map_layer(stage: Volume, name: str, *, frame: Geometry | Frame | None = None) -> LayerData:
    """Return a map of real numbers in 0..1, such as attention, as heat over the image whose frame is `frame`."""
    shown = _along(stage, frame)
    where, recorded = _placement(shown.geometry, frame)
    options = {
        "name": name,
        "colormap": "inferno",
        "rgb": False,
        "blending": "additive",
        "opacity": 0.45,
        "contrast_limits": (0.0, 1.0),
        "metadata": {KEY: {**recorded, "filed": stage.geometry}},
        **where,
    }
    return (shown.data, options, "image")


def labels_layer(labels: LabelMap, name: str, *, frame: Geometry | Frame | None = None, source: str = "") -> LayerData:
    """Return labels as a labels layer in its place, with the names and colours of their classes.

    What is painted with a number of no name is white, never invisible; the class name stands in the status bar.

    Parameters
    ----------
    labels
        On any grid.
    name
        Of the layer.
    frame
        Of the image layer over which they are shown, or its geometry if we opened it; without it the patient's axes.
    source
        File they were read from.
    """
    shown = _along(labels, frame)
    where, recorded = _placement(shown.geometry, frame)
    recorded |= {
        "filed": labels.geometry,
        "names": dict(labels.names),
        "colors": dict(labels.colors),
        "meta": dict(labels.meta),
        "source": source,
    }
    options = {
        "name": name,
        "opacity": 0.5,
        "features": features_of(labels.names),
        "colormap": colormap_of(labels),
        "metadata": {KEY: recorded},
        **where,
    }
    return (shown.data, options, "labels")


def features_of(names: Mapping[int, str]) -> dict[str, list[Any]]:
    """Return the table that napari reads class names for its status bar from."""
    return {"index": [0, *names], "name": ["background", *names.values()]}


def colormap_of(labels: LabelMap) -> dict[int | None, tuple[float, float, float, float]]:
    """Return every named label its colour, or one far from its neighbours' where it has none."""
    seen: dict[int | None, tuple[float, float, float, float]] = {None: (1.0, 1.0, 1.0, 1.0), 0: (0.0, 0.0, 0.0, 0.0)}
    colors = dict(labels.colors)
    for label, name in labels.names.items():
        usual = label_info(name).color  # as atlases colour it; not twice, or left and right look the same
        if label not in colors and usual is not None and usual not in colors.values():
            colors[label] = usual
    for label in sorted(({int(v) for v in labels.names} | {int(v) for v in colors}) - {0}):
        seen[label] = (*colors.get(label, class_color(label)), 1.0)
    return seen


def voxels_of(layer: Any) -> Any:
    """Return the voxels of an image layer: those of the finest level of a pyramid, which napari calls multiscale."""
    return layer.data[0] if getattr(layer, "multiscale", False) else layer.data


def volume_of(layers: Sequence[Any]) -> Volume:
    """Make the volume that one image layer shows, or several that are its channels.

    Raises
    ------
    GeometryMismatch
        If the layers do not lie on one grid, or are RGB.
    """
    if any(getattr(layer, "rgb", False) for layer in layers):
        raise GeometryMismatch("This layer holds colours (RGB). Choose a volume of intensities.")
    first = geometry_of(layers[0])
    for layer in layers[1:]:
        if not geometry_of(layer).matches(first):
            raise GeometryMismatch(f"{layer.name!r} does not lie on the grid of {layers[0].name!r}: channels of one "
                                   "volume need the same size and place.")  # fmt: skip
    data = [np.asarray(voxels_of(layer)) for layer in layers]
    meta = dict(fmseg_metadata(layers[0]).get("meta") or {})
    return Volume(data[0] if len(data) == 1 else np.stack(data), first, _with_spacing(meta, layers[0]))


def _with_spacing(meta: Mapping[str, Any], layer: Any) -> dict[str, Any]:
    """Note in what is known of a volume whether its layer lacks a spacing: then nobody may tell mm or ml."""
    known = {key: value for key, value in meta.items() if key != NO_SPACING}
    return known if has_spacing(layer) else {**known, NO_SPACING: True}


def names_of(layer: Any) -> dict[int, str]:
    """Return the names of the classes of a labels layer.

    They come from its `features` (which the user may have edited), else from its metadata.
    """
    features = layer.features
    if "index" in features and "name" in features:
        pairs = zip(features["index"], features["name"], strict=True)
        return {int(label): str(name) for label, name in pairs if int(label) > 0}
    return {int(k): str(v) for k, v in (fmseg_metadata(layer).get("names") or {}).items()}


def labels_of(layer: Any, geometry: Geometry | None = None) -> LabelMap:
    """Make the label map that a labels layer shows, with the names and colours of its classes.

    Parameters
    ----------
    layer
        A napari Labels layer with three axes.
    geometry
        Where its voxels lie, if more is known of it than the layer says itself: see `belonging.grid_of`.

    Raises
    ------
    GeometryMismatch
        As `geometry_of`.
    """
    recorded = fmseg_metadata(layer)
    names = names_of(layer)
    colors: dict[int, tuple[float, float, float]] = {}
    for label in names:
        red, green, blue = (float(v) for v in np.asarray(layer.colormap.map(np.array([label]))).reshape(-1)[:3])
        colors[label] = (red, green, blue)
    meta = _with_spacing(recorded.get("meta") or {}, layer)
    return LabelMap(np.asarray(layer.data), geometry or geometry_of(layer), meta, names, colors)


def as_filed(labels: LabelMap, filed: Geometry | None) -> LabelMap:
    """List labels in the order of the file that their image came from, so that a mask matches it index by index."""
    if filed is None or sorted(filed.shape) != sorted(labels.geometry.shape):
        return labels
    turned = along(labels, filed)
    if not (isinstance(turned, LabelMap) and turned.geometry.matches(filed)):
        return labels
    return LabelMap(np.ascontiguousarray(turned.data), filed, turned.meta, turned.names, turned.colors)

"""Where a layer lies: its whole transform and its units as a geometry in the patient's mm, and back; no napari here.

A layer's *world* is what napari draws. `mm_matrix` gives it in mm, whatever the units. A `Frame` says how the patient's
mm lie in that world: for images that we opened the oblique direction is left out of the world, so that they are shown
straight; for any other layer the world is taken for the patient. What lies on an image is placed by the image's frame,
so that it lies on the image whatever the image's rotation, shear, affine and units are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_fmseg.core.errors import GeometryMismatch
from napari_fmseg.core.volume import Geometry

__all__ = [
    "AXES",
    "KEY",
    "TOOL",
    "UNITS",
    "Frame",
    "add_metadata",
    "fmseg_metadata",
    "geometry_of",
    "has_spacing",
    "mm_matrix",
    "move_like",
    "moves_of",
    "place",
    "same_place",
    "unit_mm",
]

KEY = "fmseg"  # in a layer's metadata: geometry, meta, source, ...
TOOL = "tool"  # the role, there, of a layer that a tool shows or draws on for a moment: no labels of the user's
UNITS = ("mm", "mm", "mm")
AXES = ("z", "y", "x")
_NO_LENGTH = ("pixel", "dimensionless")  # what a layer has of which nobody said how large its voxels are
_STILL_MM = 5e-3  # a layer that lies this near to where it was put was not moved
_ROUNDING = 1e-9


@dataclass(frozen=True, eq=False)
class Frame:
    """How an image lies in the window.

    Attributes
    ----------
    geometry
        Of the image, in the patient.
    world
        (4, 4): a place in LPS mm to one in the layer's world in mm.
    units, axis_labels
        Of the layer.
    """

    geometry: Geometry
    world: npt.NDArray[np.float64]
    units: tuple[str, ...] = UNITS
    axis_labels: tuple[str, ...] = AXES

    @classmethod
    def of(cls, layer: Any) -> Frame:
        """Return the frame of an image layer.

        Raises
        ------
        GeometryMismatch
            As `geometry_of`.
        """
        units = tuple(str(unit) for unit in layer.units[-3:])
        return cls(geometry_of(layer), _world_of(layer), units, tuple(layer.axis_labels[-3:]))

    def place(self, geometry: Geometry) -> dict[str, Any]:
        """Return the arguments that put a layer in its place on the image; its metadata need `world`, too."""
        sizes = np.array([unit_mm(unit) for unit in self.units])
        matrix = self.world @ geometry.affine
        matrix[:3] /= sizes[:, None]
        steps = matrix[:3, :3]
        scale = np.linalg.norm(steps, axis=0)
        recorded: dict[str, Any] = {"units": self.units, "axis_labels": self.axis_labels}
        if np.abs(steps - np.diag(scale)).max() <= _ROUNDING * scale.max():
            return {"scale": tuple(scale.tolist()), "translate": tuple(matrix[:3, 3].tolist()), **recorded}
        matrix[:3, :3] = steps / scale  # as an affine: napari's own rotate and shear cannot hold every matrix
        return {"scale": tuple(scale.tolist()), "affine": matrix, **recorded}


def place(geometry: Geometry) -> dict[str, Any]:
    """Return the arguments that put a layer in its place: scale, translate, units and axis labels, all (z, y, x)."""
    turn = geometry.direction
    start = np.linalg.solve(turn, geometry.origin) if geometry.is_sheared else turn.T @ geometry.origin
    return {"scale": geometry.spacing, "translate": tuple(start.tolist()), "units": UNITS, "axis_labels": AXES}


def has_spacing(layer: Any) -> bool:
    """Return whether a layer says how large its voxels are: without it there are voxels, but no mm and no ml."""
    return not any(str(unit) in _NO_LENGTH for unit in layer.units[-3:])


def mm_matrix(layer: Any) -> npt.NDArray[np.float64]:
    """Return the (4, 4) matrix from an index (z, y, x, 1) to the layer's world in mm; a pixel counts as 1 mm.

    Raises
    ------
    GeometryMismatch
        If the layer has fewer than three axes, its units are no lengths, or its transform mixes the last three axes
        with others.
    """
    n = int(layer.ndim)
    if n < 3:
        raise GeometryMismatch(f"Layer {layer.name!r} has {n} axes; a volume needs three (z, y, x).")
    sizes = [unit_mm(unit, str(layer.name)) for unit in layer.units[-3:]]
    start = np.array(layer.data_to_world((0.0,) * n), float)
    steps = np.array([layer.data_to_world(tuple(row)) for row in np.eye(n)], float) - start
    if np.abs(steps[: n - 3, n - 3 :]).max(initial=0) > 0 or np.abs(steps[n - 3 :, : n - 3]).max(initial=0) > 0:
        raise GeometryMismatch(
            f"The transform of layer {layer.name!r} mixes its last three axes with the ones before. Expected a "
            "transform of z, y and x alone. Split the layer along its first axis."
        )
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = steps[n - 3 :, n - 3 :].T, start[n - 3 :]
    matrix[:3] *= np.array(sizes)[:, None]
    return matrix


def unit_mm(unit: Any, name: str = "") -> float:
    """Return the length of a unit in mm, 1 for a pixel.

    Raises
    ------
    GeometryMismatch
        If it is no length; `name` is that of the layer.
    """
    size = _size_mm(str(unit))
    if size is None:
        raise GeometryMismatch(
            f"The axes of layer {name!r} are measured in {unit}, which is no length. Expected a length such as mm or "
            'um, or pixel. Set the units of its last three axes, such as layer.units = ("mm", "mm", "mm").'
        )
    return size


@cache
def _size_mm(unit: str) -> float | None:
    if unit in _NO_LENGTH:
        return 1.0
    import pint

    try:
        return float(pint.Quantity(1.0, unit).to("mm").magnitude)
    except pint.errors.PintError:
        return None


def geometry_of(layer: Any) -> Geometry:
    """Return where a layer's voxels lie: as its file said, if it was not moved since, else as its whole transform says.

    Parameters
    ----------
    layer
        A napari Image or Labels layer with three axes (the last three count).

    Raises
    ------
    GeometryMismatch
        If the layer has fewer than three axes, units that are no lengths, or a transform that cannot be used.
    """
    matrix = mm_matrix(layer)
    z, y, x = (int(n) for n in layer.data.shape[-3:])
    found = Geometry((z, y, x), np.asarray(np.linalg.solve(_world_of(layer), matrix), np.float64))
    known = fmseg_metadata(layer).get("geometry")
    return known if isinstance(known, Geometry) and known.matches(found, atol_mm=_STILL_MM) else found


def same_place(one: Any, other: Any) -> bool:
    """Return whether two layers show the same voxels in the same places of the world."""
    if tuple(one.data.shape[-3:]) != tuple(other.data.shape[-3:]):
        return False
    try:
        seen = [Geometry(tuple(one.data.shape[-3:]), mm_matrix(layer)) for layer in (one, other)]
    except GeometryMismatch:
        return False
    return seen[0].matches(seen[1], atol_mm=2 * _STILL_MM)


def move_like(layer: Any, by: Any) -> None:
    """Put a layer where another one lies; each attribute costs the window a new look, so only where they differ."""
    if same_units(layer, by) and np.array_equal(mm_matrix(layer), mm_matrix(by)):
        return
    for name, value in (("rotate", np.eye(layer.ndim)), ("shear", np.zeros(layer.ndim * (layer.ndim - 1) // 2))):
        setattr(layer, name, value)  # what we place has neither; the matrix of the two is in `affine`
    for name in ("scale", "translate", "affine", "units"):
        setattr(layer, name, getattr(by, name))


def moves_of(layer: Any) -> list[Any]:
    """List the events of a layer that tell that it lies elsewhere, or is measured in other units."""
    names = ("scale", "translate", "rotate", "shear", "affine", "units")
    return [getattr(layer.events, name) for name in names if name in layer.events]


def same_units(one: Any, other: Any) -> bool:
    """Return whether two layers are measured in the same units."""
    return [str(unit) for unit in one.units] == [str(unit) for unit in other.units]


def fmseg_metadata(layer: Any) -> dict[str, Any]:
    """Return a copy of what this plugin has recorded on a layer; empty for layers of others, and without a layer."""
    recorded = None if layer is None else layer.metadata.get(KEY)
    return dict(recorded) if isinstance(recorded, Mapping) else {}


def add_metadata(layer: Any, **facts: Any) -> None:
    """Record facts on a layer, besides those that are there."""
    layer.metadata = {**layer.metadata, KEY: {**fmseg_metadata(layer), **facts}}


def _world_of(layer: Any) -> npt.NDArray[np.float64]:
    """Return the matrix from LPS mm to the layer's world in mm."""
    recorded = fmseg_metadata(layer)
    if recorded.get("world") is not None:
        return np.array(recorded["world"], np.float64)
    known = recorded.get("geometry")
    world = np.eye(4)
    if isinstance(known, Geometry):
        world[:3, :3] = np.linalg.inv(known.direction)
    return world

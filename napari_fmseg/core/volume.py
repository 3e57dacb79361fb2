"""A volume and its place in the patient: arrays in (z, y, x), positions in LPS millimetres.

The affine maps an index (z, y, x, 1) to a position in LPS millimetres, whose coordinates are listed
z, y, x as well, so that index and position never need a reversal. Reading and writing reverse once, in `io`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_fmseg.core.errors import FmsegError, GeometryMismatch

__all__ = ["NO_SPACING", "Box", "Geometry", "LabelMap", "Volume"]

Box = tuple[slice, slice, slice]
NO_SPACING = "no_spacing"
"""Key in a volume's meta, true if the size of its voxels is unknown: its mm are pixels, and it has no ml."""


@dataclass(frozen=True, eq=False)
class Geometry:
    """Where the voxels of a grid lie.

    Parameters
    ----------
    shape
        Voxels along (z, y, x).
    affine
        (4, 4) float64: index (z, y, x, 1) to LPS mm listed z, y, x. It may be oblique, flipped or sheared.

    Raises
    ------
    GeometryMismatch
        If the affine is not finite or singular, or the shape is not three positive numbers.
    """

    shape: tuple[int, int, int]
    affine: npt.NDArray[np.float64]

    def __post_init__(self) -> None:
        shape = tuple(int(n) for n in self.shape)
        affine = np.array(self.affine, np.float64)  # a copy, so that freezing it does not freeze the caller's
        if len(shape) != 3 or min(shape) < 1:
            raise GeometryMismatch(f"A grid needs three positive sizes (z, y, x), not {shape}.")
        if affine.shape != (4, 4) or not np.isfinite(affine).all():
            raise GeometryMismatch(f"An affine is a finite (4, 4) matrix, not {affine.tolist()}.")
        norms = np.linalg.norm(affine[:3, :3], axis=0)
        if norms.min() <= 0 or abs(np.linalg.det(affine[:3, :3] / norms)) < 1e-6:
            raise GeometryMismatch(f"The affine is singular: its voxels have no volume (columns {norms.tolist()} mm).")
        affine.setflags(write=False)
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "affine", affine)

    @classmethod
    def from_spacing(
        cls,
        shape: tuple[int, int, int],
        spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
        origin: tuple[float, float, float] = (0.0, 0.0, 0.0),
        direction: npt.ArrayLike | None = None,
    ) -> Geometry:
        """Make a grid from spacing and origin in mm and a (3, 3) direction, all in z, y, x order."""
        affine = np.eye(4)
        affine[:3, :3] = (np.eye(3) if direction is None else np.asarray(direction)) * np.asarray(spacing)
        affine[:3, 3] = origin
        return cls(shape, affine)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxels in mm along (z, y, x)."""
        z, y, x = np.linalg.norm(self.affine[:3, :3], axis=0).tolist()
        return (z, y, x)

    @property
    def direction(self) -> npt.NDArray[np.float64]:
        """(3, 3): column i is the unit vector along which index axis i runs."""
        columns: npt.NDArray[np.float64] = self.affine[:3, :3]
        return np.asarray(columns / np.linalg.norm(columns, axis=0), np.float64)

    @property
    def origin(self) -> tuple[float, float, float]:
        """Position of voxel (0, 0, 0) in LPS mm, listed z, y, x."""
        z, y, x = self.affine[:3, 3].tolist()
        return (z, y, x)

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel in millilitres."""
        return float(abs(np.linalg.det(self.affine[:3, :3]))) / 1000

    @property
    def is_sheared(self) -> bool:
        """Whether the axes are not orthogonal, so that spacing and direction alone cannot hold the affine."""
        return bool(np.abs(self.direction.T @ self.direction - np.eye(3)).max() > 1e-4)

    @property
    def orientation(self) -> str:
        """Where the axes (z, y, x) run to, nearest of L, P, S, R, A, I: ``"SPL"`` is the radiologists' usual one."""
        axes = self._nearest_axes()
        return "".join(("SI", "PA", "LR")[axis][0 if sign > 0 else 1] for axis, sign in axes)

    def _nearest_axes(self) -> list[tuple[int, int]]:
        """Return for each index axis the patient axis (0 z, 1 y, 2 x) it follows most closely, and its sign."""
        left = self.direction.copy()
        found: dict[int, tuple[int, int]] = {}
        for _ in range(3):  # greedily, the clearest first, so that no patient axis is taken twice
            patient, index = divmod(int(np.argmax(np.abs(left))), 3)
            found[index] = (patient, 1 if left[patient, index] > 0 else -1)
            left[patient, :] = 0
            left[:, index] = 0
        return [found[i] for i in range(3)]

    def place(self, index: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Return the position of voxel indices (..., 3) in LPS mm, listed z, y, x."""
        return np.asarray(index, np.float64) @ self.affine[:3, :3].T + self.affine[:3, 3]

    def crop(self, box: Box) -> Geometry:
        """Return the grid of the part inside `box` (slices with step 1, within the shape)."""
        bounds = [s.indices(n) for s, n in zip(box, self.shape, strict=True)]
        affine = self.affine.copy()
        affine[:3, 3] = self.place([start for start, _, _ in bounds])
        z, y, x = (stop - start for start, stop, _ in bounds)
        return Geometry((z, y, x), affine)

    def resize(self, shape: tuple[int, int, int]) -> Geometry:
        """Return the grid with `shape` voxels that fills the same field of view, edge to edge."""
        factor = np.array(self.shape) / np.array(shape)
        affine = self.affine.copy()
        affine[:3, :3] = self.affine[:3, :3] * factor
        affine[:3, 3] = self.place((factor - 1) / 2)
        return Geometry(shape, affine)

    def resized(self, shape: tuple[int, int, int]) -> Geometry:
        """Return what `resize` does; this previous name ends with version 0.3.0."""
        warnings.warn("Geometry.resized is now Geometry.resize; it ends with 0.3.0.", DeprecationWarning, stacklevel=2)
        return self.resize(shape)

    def canonical(self) -> tuple[Geometry, tuple[int, int, int], tuple[int, ...]]:
        """Return the same voxels listed so that z runs to superior, y to posterior and x to left, as near as they go.

        Returns
        -------
        tuple
            The geometry, the axes to transpose by and then the axes to flip:
            ``np.flip(data.transpose(order), flips)``. No voxel is interpolated.
        """
        axes = self._nearest_axes()
        order = tuple(next(i for i, (patient, _) in enumerate(axes) if patient == p) for p in range(3))
        flips = tuple(p for p in range(3) if axes[order[p]][1] < 0)
        shape = tuple(self.shape[i] for i in order)
        to_source = np.zeros((4, 4))  # canonical index -> index of self
        to_source[3, 3] = 1
        for p, i in enumerate(order):
            to_source[i, p] = -1 if p in flips else 1
            to_source[i, 3] = shape[p] - 1 if p in flips else 0
        return Geometry(shape, self.affine @ to_source), order, flips  # type: ignore[arg-type,return-value]

    def matches(self, other: Geometry, *, atol_mm: float = 1e-3) -> bool:
        """Return whether both grids have the same shape and all corners within `atol_mm` of each other."""
        if self.shape != other.shape:
            return False
        corners = np.array(np.meshgrid(*[(0, n - 1) for n in self.shape])).reshape(3, -1).T
        return bool(np.abs(self.place(corners) - other.place(corners)).max() <= atol_mm)

    def __eq__(self, other: object) -> bool:
        """Return whether shape and affine are equal, to the last bit."""
        if not isinstance(other, Geometry):
            return NotImplemented
        return self.shape == other.shape and np.array_equal(self.affine, other.affine)

    def __hash__(self) -> int:
        return hash((self.shape, self.affine.tobytes()))


@dataclass(frozen=True, eq=False)
class Volume:
    """An image on its grid.

    Parameters
    ----------
    data
        (z, y, x), or (c, z, y, x) with several channels or time points. Not copied.
    geometry
        The grid of the last three axes.
    meta
        What came with the file and may be shown (modality, window, units, what was repaired); never the
        patient's identity.

    Raises
    ------
    GeometryMismatch
        If the last three axes of the data do not have the geometry's shape.
    """

    data: npt.NDArray[Any]
    geometry: Geometry
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.data.ndim not in (3, 4) or self.data.shape[-3:] != self.geometry.shape:
            raise GeometryMismatch(
                f"Data of shape {self.data.shape} do not lie on a grid of {self.geometry.shape}. "
                "Expected (z, y, x) or (c, z, y, x)."
            )

    @property
    def n_channels(self) -> int:
        """Channels; 1 for (z, y, x)."""
        return self.data.shape[0] if self.data.ndim == 4 else 1

    @property
    def has_spacing(self) -> bool:
        """Whether the size of the voxels is known: without it nothing may be stated in mm or ml."""
        return not self.meta.get(NO_SPACING)

    @property
    def channels(self) -> npt.NDArray[Any]:
        """The data as (c, z, y, x), without a copy."""
        return self.data if self.data.ndim == 4 else self.data[None]

    @property
    def warnings(self) -> tuple[str, ...]:
        """What was repaired while reading and what looks odd, as sentences for the user."""
        return (*self.meta.get("repaired", ()), *self.meta.get("warnings", ()))


@dataclass(frozen=True, eq=False)
class LabelMap(Volume):
    """Integer labels (z, y, x) on their grid; 0 is background.

    Parameters
    ----------
    names
        Name of each label: ``{1: "liver"}``.
    colors
        Optional colour of each label as red, green, blue in 0..1.
    """

    names: Mapping[int, str] = field(default_factory=dict)
    colors: Mapping[int, tuple[float, float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data.ndim != 3 or self.data.dtype.kind not in "bui":
            raise FmsegError(
                f"Labels are integers on (z, y, x), not {self.data.dtype} of shape {self.data.shape}. "
                "Round them first, for example with numpy.rint."
            )

    def volumes_ml(self) -> dict[int, float]:
        """Return the volume of every label that occurs or has a name, in millilitres."""
        values, counts = np.unique(self.data, return_counts=True)
        found = {int(v): int(n) for v, n in zip(values, counts, strict=True)}
        return {v: found.get(v, 0) * self.geometry.voxel_ml for v in sorted({*found, *self.names} - {0})}

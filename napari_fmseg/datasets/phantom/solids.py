"""Solids as formulas, in millimetres, each with the density that a CT shows for it.

Coordinates are those of the patient, (z, y, x) in mm: z to superior, y to posterior, x to left, with the origin in the
middle of the belly at the level of the kidneys. A solid is a function that gives the depth under its surface in mm,
positive inside, so that unions are maxima, intersections minima, and a voxel's share of a solid follows from the depth.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = [
    "Array",
    "Part",
    "Scene",
    "Solid",
    "common",
    "ellipsoid",
    "nearest",
    "smooth_path",
    "smooth_union",
    "tube",
    "tube_part",
]

Array: TypeAlias = npt.NDArray[np.float32]
Point: TypeAlias = tuple[float, float, float]
Path: TypeAlias = Sequence[tuple[float, float, float, float]]  # z, y, x, radius


@dataclass(frozen=True)
class Scene:
    """Where the sampled points lie.

    Attributes
    ----------
    z, y, x
        Places in mm after the patient's own smooth deformation, each (z, y, x): for soft organs.
    rigid
        The same places before it: for bones and the wall.
    wall
        Depth under the inner surface of the abdominal wall in mm; negative in the wall and outside of the body.
    below
        Distance below the diaphragm in mm; negative above it.
    """

    z: Array
    y: Array
    x: Array
    rigid: tuple[Array, Array, Array]
    wall: Array
    below: Array

    def cut(self, box: tuple[slice, slice, slice]) -> Scene:
        """Return the points inside `box`."""
        z, y, x = (a[box] for a in self.rigid)
        return Scene(self.z[box], self.y[box], self.x[box], (z, y, x), self.wall[box], self.below[box])


Solid: TypeAlias = Callable[[Scene], Array]


@dataclass(frozen=True)
class Part:
    """One thing to be painted over what lies there already.

    Attributes
    ----------
    solid
        Its depth in mm.
    hu
        Its density in HU, or a function that gives it at every point.
    low, high
        Corners of the box that holds it, in mm (z, y, x).
    label
        What it is in the truth; 0 background; None leaves the truth as it is (a vessel within the liver).
    """

    solid: Solid
    hu: float | Solid
    low: Point = (-1e4, -1e4, -1e4)
    high: Point = (1e4, 1e4, 1e4)
    label: int | None = 0


def ellipsoid(centre: Point, radii: Point, turn: float = 0.0, *, plane: str = "yx", rigid: bool = False) -> Solid:
    """Make an ellipsoid, turned by `turn` degrees within `plane` ("yx", "zx" or "zy")."""
    first, second = ("zyx".index(a) for a in plane)
    c, s = np.float32(np.cos(np.radians(turn))), np.float32(np.sin(np.radians(turn)))

    def depth(scene: Scene) -> Array:
        p = [a - np.float32(m) for a, m in zip(_points(scene, rigid), centre, strict=True)]
        if turn:
            p[first], p[second] = c * p[first] - s * p[second], s * p[first] + c * p[second]
        u = [a / np.float32(r) for a, r in zip(p, radii, strict=True)]
        share = np.sqrt(sum(a * a for a in u) + np.float32(1e-6))
        steep = np.sqrt(sum((a / np.float32(r)) ** 2 for a, r in zip(u, radii, strict=True)) + np.float32(1e-9))
        return np.asarray(share * (1 - share) / steep, np.float32)  # first order in the distance to the surface

    return depth


def tube(points: Path, *, flat: float = 1.0, rigid: bool = False) -> Solid:
    """Make a tube through `points` (z, y, x, radius), smoothly joined; `flat` > 1 presses it from front to back."""
    knots = smooth_path(points)

    def depth(scene: Scene) -> Array:
        return nearest(scene, knots, flat, rigid)[0]

    return depth


def smooth_path(points: Path, per_piece: int = 4) -> npt.NDArray[np.float64]:
    """Lay a Catmull-Rom curve through `points`: (n, 4)."""
    p = np.asarray(points, float)
    p = np.concatenate([2 * p[:1] - p[1:2], p, 2 * p[-1:] - p[-2:-1]])
    a, b, c, d = p[:-3], p[1:-2], p[2:-1], p[3:]
    t = np.linspace(0, 1, per_piece, endpoint=False)[None, :, None]
    a, b, c, d = (v[:, None] for v in (a, b, c, d))
    curve = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
    return np.concatenate([curve.reshape(-1, 4), p[-2:-1]])


def nearest(scene: Scene, knots: npt.NDArray[np.float64], flat: float, rigid: bool) -> tuple[Array, Array]:
    """Return depth in a tube, and y of the nearest point of its axis."""
    z, y, x = _points(scene, rigid)
    best = np.full(z.shape, -1e4, np.float32)
    level = np.zeros(z.shape, np.float32)
    for a, b in zip(knots[:-1].astype(np.float32), knots[1:].astype(np.float32), strict=True):
        along = (b - a)[:3]
        t = (z - a[0]) * along[0] + (y - a[1]) * along[1] + (x - a[2]) * along[2]
        t = np.clip(t / max(float(along @ along), 1e-6), 0, 1)
        dz, dy, dx = z - (a[0] + t * along[0]), y - (a[1] + t * along[1]), x - (a[2] + t * along[2])
        found = a[3] + t * (b[3] - a[3]) - np.sqrt(dz * dz + (np.float32(flat) * dy) ** 2 + dx * dx)
        closer = found > best
        best = np.where(closer, found, best)
        level = np.where(closer, a[1] + t * along[1], level)
    return best, level


def _points(scene: Scene, rigid: bool) -> tuple[Array, Array, Array]:
    return scene.rigid if rigid else (scene.z, scene.y, scene.x)


def dilate(solid: Solid, mm: float) -> Solid:
    """Grow a solid by `mm` on all sides, or shrink it."""
    return lambda scene: solid(scene) + np.float32(mm)


def within(solid: Solid, host: Solid, bulge_mm: float = 0.0) -> Solid:
    """Keep a solid inside another one, out of which it may bulge."""
    return lambda scene: common(solid(scene), host(scene) + np.float32(bulge_mm))


def common(first: Array, *others: npt.NDArray[Any]) -> Array:
    """Intersect solids."""
    for other in others:
        first = np.minimum(first, np.asarray(other, np.float32))
    return first


def smooth_union(a: Array, b: Array, mm: float) -> Array:
    """Unite two solids with a fillet of about `mm`."""
    h = np.clip(0.5 + (a - b) / np.float32(2 * mm), 0, 1)
    return np.asarray(b + (a - b) * h + np.float32(mm) * h * (1 - h), np.float32)


def tube_part(solid: Solid, path: Path, hu: float | Solid, label: int | None = 0, margin: float = 12) -> Part:
    """Make the part of a tube along `path`, with the box that holds it."""
    p = np.asarray(path, float)
    low, high = (p[:, :3] - p[:, 3:]).min(0) - margin, (p[:, :3] + p[:, 3:]).max(0) + margin
    return Part(solid, hu, (low[0], low[1], low[2]), (high[0], high[1], high[2]), label)

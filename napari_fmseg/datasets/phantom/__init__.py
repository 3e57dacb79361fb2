"""A CT of the abdomen that nobody had taken: drawn from formulas, with the truth known for every voxel.

It feeds the sample data, the demonstration and the tests, so that these need no download and no patient.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from napari_fmseg.core.errors import FmsegError
from napari_fmseg.core.volume import Box, Geometry, LabelMap, Volume
from napari_fmseg.datasets.phantom.anatomy import Anatomy, make_anatomy
from napari_fmseg.datasets.phantom.solids import Part, Scene
from napari_fmseg.datasets.phantom.viscera import LABELS

__all__ = ["COLORS", "LABELS", "phantom_cases", "phantom_ct"]

Difficulty: TypeAlias = Literal["easy", "normal", "hard"]
COLORS = {1: (0.72, 0.40, 0.30), 2: (0.93, 0.78, 0.35), 3: (0.55, 0.42, 0.75), 4: (0.42, 0.72, 0.55),
          5: (0.93, 0.25, 0.35)}  # fmt: skip
FIELD_MM = (276.0, 384.0, 384.0)
CENTRE_MM = (-4.0, 14.0, 0.0)  # of the field of view, in the anatomy
NOISE_HU = {"easy": 9.0, "normal": 14.0, "hard": 24.0}
SLAB_VOXELS = 1_500_000
SPACINGS = ((1.5, 2.5, 2.5), (2.0, 2.0, 2.0), (2.5, 2.0, 2.0), (3.0, 3.0, 3.0), (3.0, 1.7, 1.7), (5.0, 2.0, 2.0),
            (5.0, 3.0, 3.0))  # fmt: skip


def phantom_ct(
    seed: int,
    *,
    spacing: tuple[float, float, float] = (3.0, 3.0, 3.0),
    shape: tuple[int, int, int] | None = None,
    difficulty: Difficulty = "normal",
) -> tuple[Volume, LabelMap]:
    """Make the CT of an abdomen, and what is what in it.

    Parameters
    ----------
    seed
        Draws the patient (sizes, places, phase of the contrast medium, tumours) and the noise. The same seed
        gives the same patient in the same place at any spacing, and the same volume at the same spacing.
    spacing
        Distance between voxels in mm, (z, y, x).
    shape
        Voxels along (z, y, x); by default as many as a field of view of 276 x 384 x 384 mm needs.
    difficulty
        "easy" has contrast medium in the veins, clear tumours and little noise; "hard" has fat livers, faint
        tumours, strong noise, streaks from metal, and often no contrast medium.

    Returns
    -------
    tuple
        The volume, int16 in HU (z, y, x), and its labels, uint8: 1 liver, 2 kidneys, 3 spleen, 4 pancreas, 5 tumour.
        A voxel bears the label that fills most of it.

    Raises
    ------
    FmsegError
        If the difficulty is none of the three or the spacing is not positive.
    """
    if difficulty not in NOISE_HU:
        raise FmsegError(f"No phantom of difficulty {difficulty!r}. Choose one of {', '.join(NOISE_HU)}.")
    if not all(0 < s < 1e3 for s in spacing):
        raise FmsegError(f"The spacing of a phantom is three positive numbers in mm, not {spacing}.")
    anatomy = make_anatomy(np.random.default_rng([seed, 0]), difficulty)
    z, y, x = shape or [max(1, round(mm / s)) for mm, s in zip(FIELD_MM, spacing, strict=True)]
    axes = [(np.arange(n) - (n - 1) / 2) * s + c for n, s, c in zip((z, y, x), spacing, CENTRE_MM, strict=True)]
    hu, labels = _render(anatomy, axes, spacing)
    rng = np.random.default_rng([seed, 1])
    table = float(np.random.default_rng([seed, 2]).uniform(-900, -100))  # where the scanner counts z from
    hu += _noise(rng, hu, spacing, NOISE_HU[difficulty])
    if difficulty == "hard":
        hu += _streaks(rng, axes)
    origin = (axes[0][0] + table, axes[1][0], axes[2][0])
    geometry = Geometry.from_spacing((z, y, x), spacing, origin)
    meta = {"modality": "CT", "units": "HU", "phase": anatomy.phase, "phantom": f"{difficulty}, seed {seed}"}
    data = np.clip(np.rint(hu), -1024, 3071).astype(np.int16)
    return Volume(data, geometry, meta), LabelMap(labels, geometry, meta, LABELS, COLORS)


def phantom_cases(n: int, seed: int, *, difficulty: Difficulty | None = None) -> Iterator[tuple[Volume, LabelMap]]:
    """Make `n` patients of mixed spacing, and of mixed difficulty unless one is given."""
    for i in range(n):
        rng = np.random.default_rng([seed, i, 7])
        chosen: Difficulty = difficulty or rng.choice(["easy", "normal", "normal", "hard"])
        yield phantom_ct(
            int(rng.integers(2**31)), spacing=SPACINGS[int(rng.integers(len(SPACINGS)))], difficulty=chosen
        )


# --- rendering --------------------------------------------------------------------------------------------------


def _render(
    anatomy: Anatomy, axes: Sequence[npt.NDArray[Any]], spacing: tuple[float, float, float]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    """Paint the parts slab by slab; thick slices are the mean of thin ones, as in a scanner."""
    shape = tuple(len(a) for a in axes)
    thin = 2 * int(np.ceil(spacing[0] / 6.0 - 0.5)) + 1  # odd, so that no vote on a label is a draw
    offsets = ((np.arange(thin) + 0.5) / thin - 0.5) * spacing[0]
    edge = float(np.mean((spacing[0] / thin, *spacing[1:]))) + 0.6  # mm over which a surface fades: voxel and optics
    hu = np.empty(shape, np.float32)
    labels = np.empty(shape, np.uint8)
    step = max(1, SLAB_VOXELS // (thin * shape[1] * shape[2]))
    for start in range(0, shape[0], step):
        z = (axes[0][start : start + step, None] + offsets).ravel()
        scene = anatomy.scene(z, axes[1], axes[2])
        fine, truth = _paint(scene, anatomy.parts, edge / anatomy.scale)
        stop = start + len(z) // thin
        hu[start:stop] = fine.reshape(-1, thin, *shape[1:]).mean(1)
        labels[start:stop] = _majority(truth.reshape(-1, thin, *shape[1:]))
    return hu, labels


def _paint(
    scene: Scene, parts: tuple[Part, ...], edge_mm: float
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    hu = np.full(scene.wall.shape, -1000, np.float32)
    labels = np.zeros(scene.wall.shape, np.uint8)
    lines = [scene.rigid[0][:, 0, 0], scene.rigid[1][0, :, 0], scene.rigid[2][0, 0, :]]
    for part in parts:
        box = _box(lines, part)
        if box is None:
            continue
        inside = scene.cut(box)
        share = np.clip(part.solid(inside) / np.float32(edge_mm) + np.float32(0.5), 0, 1)
        value = part.hu(inside) if callable(part.hu) else np.float32(part.hu)
        hu[box] += share * (value - hu[box])
        if part.label is not None:
            labels[box][share > 0.5] = part.label
    return hu, labels


def _box(lines: list[npt.NDArray[np.float32]], part: Part) -> Box | None:
    first = [int(np.searchsorted(line, a)) for line, a in zip(lines, part.low, strict=True)]
    last = [int(np.searchsorted(line, b)) for line, b in zip(lines, part.high, strict=True)]
    if any(a >= b for a, b in zip(first, last, strict=True)):
        return None
    z, y, x = (slice(a, b) for a, b in zip(first, last, strict=True))
    return z, y, x


def _majority(labels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return the most frequent label along axis 1 of (z, thin, y, x)."""
    if labels.shape[1] == 1:
        return labels[:, 0]
    counts = np.stack([(labels == value).sum(1, dtype=np.uint8) for value in range(len(LABELS) + 1)])
    return np.asarray(counts.argmax(0), np.uint8)


# --- what the scanner adds --------------------------------------------------------------------------------------


def _noise(
    rng: np.random.Generator, hu: npt.NDArray[np.float32], spacing: tuple[float, float, float], sigma: float
) -> npt.NDArray[np.float32]:
    """Draw noise with the texture of filtered back projection: grains of about 2 mm, strongest in the middle."""
    _, ny, nx = hu.shape
    fy, fx = np.fft.fftfreq(ny, spacing[1]), np.fft.rfftfreq(nx, spacing[2])
    f = np.hypot(fy[:, None], fx)
    power = ((0.02 + f) * np.exp(-((f / 0.22) ** 2))).astype(np.float32)
    power /= np.sqrt((power**2).mean())
    y, x = np.linspace(-1, 1, ny)[:, None], np.linspace(-1, 1, nx)
    middle = (0.62 + 0.5 * np.exp(-2.2 * (x**2 + y**2))) * sigma * np.sqrt(3 / spacing[0]) ** 0.7
    noise = np.empty_like(hu)
    for k in range(hu.shape[0]):
        grain = rng.standard_normal((ny, nx), np.float32)
        noise[k] = np.fft.irfft2(np.fft.rfft2(grain) * power, s=(ny, nx)) * middle
    return noise


def _streaks(rng: np.random.Generator, axes: Sequence[npt.NDArray[Any]]) -> npt.NDArray[np.float32]:
    """Draw rays from a metal clip through a few slices, and the flat noise of a wide pelvis."""
    z, y, x = (a.astype(np.float32) for a in axes)
    cz, cy, cx = rng.uniform((-60, -40, -60), (70, 40, 60))
    dy, dx = (y - cy)[:, None], (x - cx)[None, :]
    r, turn = np.hypot(dy, dx), np.arctan2(dy, dx)
    rays = sum(np.sin(k * turn + p) for k, p in zip((5, 9, 14, 22), rng.uniform(0, 6.3, 4), strict=True))
    star = 150 * rays / (1 + r / 9) + np.where(r < 3, 1500, 0)
    near = np.exp(-(((z - cz) / 6) ** 2))
    lines = rng.normal(0, 1, (len(z), len(y), 1)) * np.clip((-z - 60) / 90, 0, 1)[:, None, None] * 9
    lines = lines * np.exp(-(((y - 20) / 90) ** 2))[:, None]
    return np.asarray(near[:, None, None] * star + lines, np.float32)

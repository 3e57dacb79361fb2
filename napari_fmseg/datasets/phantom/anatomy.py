"""The patient: wall, chest, bones, muscles and vessels of an abdomen, drawn at random."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from napari_fmseg.datasets.phantom.solids import (
    Array,
    Part,
    Path,
    Scene,
    Solid,
    common,
    dilate,
    ellipsoid,
    tube,
    tube_part,
)
from napari_fmseg.datasets.phantom.viscera import Viscera

__all__ = ["PHASES", "Anatomy", "make_anatomy"]

Waves: TypeAlias = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]

# HU of what takes up contrast medium, by the phase of the injection.
PHASES: dict[str, dict[str, float]] = {
    "native": {"liver": 60, "cortex": 34, "medulla": 32, "spleen": 48, "pancreas": 40, "aorta": 42, "cava": 40,
               "portal": 40, "bowel": 38, "heart": 42},
    "arterial": {"liver": 78, "cortex": 195, "medulla": 95, "spleen": 125, "pancreas": 108, "aorta": 300, "cava": 95,
                 "portal": 130, "bowel": 75, "heart": 210},
    "portal venous": {"liver": 108, "cortex": 190, "medulla": 170, "spleen": 124, "pancreas": 92, "aorta": 160,
                      "cava": 150, "portal": 172, "bowel": 70, "heart": 150},
}  # fmt: skip


@dataclass(frozen=True)
class Anatomy:
    """One patient: `parts` in the order of painting, and how the body is shaped.

    Attributes
    ----------
    phase
        Key of `PHASES`.
    scale
        Size against the standard patient.
    fat_mm
        Thickness of the subcutaneous fat.
    waves
        Frequencies (n, 3) in rad/mm, phases (n,) and amplitudes (n, 3) in mm of the deformation.
    """

    parts: tuple[Part, ...]
    phase: str
    scale: float
    fat_mm: float
    girth: float
    waves: Waves

    def scene(self, z: npt.ArrayLike, y: npt.ArrayLike, x: npt.ArrayLike) -> Scene:
        """Lay the points of three axes (mm, in the patient) into the anatomy."""
        axes = [np.asarray(a, np.float64) / self.scale for a in (z, y, x)]
        rigid = np.meshgrid(*[a.astype(np.float32) for a in axes], indexing="ij")
        moved = [a.copy() for a in rigid]
        for frequency, phase, amplitude in zip(*self.waves, strict=True):
            # sin(k.p + phase) as a product of one complex wave per axis: no sine per voxel
            wz, wy, wx = (np.exp(1j * f * a).astype(np.complex64) for f, a in zip(frequency, axes, strict=True))
            plane = wy[:, None] * wx[None, :] * np.complex64(np.exp(1j * phase))
            wave = (wz[:, None, None] * plane).imag
            for a, mm in zip(moved, amplitude, strict=True):
                if mm:
                    a += np.float32(mm) * wave
        rz, ry, rx = rigid
        wall, radius = _wall(rz, ry, rx, self.girth)
        return Scene(moved[0], moved[1], moved[2], (rz, ry, rx), wall, _diaphragm(rx, ry, radius) - moved[0])


def _f32(values: npt.NDArray[Any]) -> Array:
    return np.asarray(values, np.float32)


def _wall(z: Array, y: Array, x: Array, girth: float) -> tuple[Array, Array]:
    """Return depth under the inner side of the abdominal wall, and the radius as a share of the cavity's."""
    line = z[:, :1, :1]
    waist = np.exp(-(((line + 55) / 55) ** 2))
    across = girth * (131 - 9 * waist - 0.0011 * np.clip(line - 50, 0, None) ** 2)
    deep = girth * (96 - 13 * waist + 4 * np.clip(line / 100, -0.5, 1)) * np.where(y < 0, 1.0, 0.98)
    share = (np.abs(x / across) ** 2.4 + np.abs(y / deep) ** 2.4) ** np.float32(1 / 2.4)
    radius = np.maximum(share, np.float32(1e-3))
    return (np.sqrt(x * x + y * y) * (1 / radius - 1)).astype(np.float32), radius.astype(np.float32)


def _diaphragm(x: Array, y: Array, radius: Array) -> Array:
    """Return the height of the diaphragm: two domes, the right one higher, falling steeply to the ribs and deepest
    behind.
    """
    right = 114 - 0.0085 * (x + 62) ** 2
    left = 100 - 0.0085 * (x - 66) ** 2
    dome = np.maximum(np.maximum(right, left), 84) - 0.0022 * (y + 12) ** 2
    return _f32(dome - 62 * radius**5 * (1 + 0.35 * np.clip(y / 90, -0.6, 1)))


def make_anatomy(rng: np.random.Generator, difficulty: str) -> Anatomy:
    """Draw one patient."""
    hard, easy = difficulty == "hard", difficulty == "easy"
    chances = {"easy": (0, 0, 1), "normal": (0.15, 0.25, 0.6), "hard": (0.3, 0.3, 0.4)}[difficulty]
    phase = str(rng.choice(list(PHASES), p=chances))
    hu = {k: v + rng.normal(0, 0.03 * abs(v) + 2) for k, v in PHASES[phase].items()}
    if rng.random() < (0.35 if hard else 0.1 if not easy else 0):
        hu["liver"] -= rng.uniform(8, 25)  # fatty
    amount = {"easy": 0.7, "normal": 1.0, "hard": 1.3}[difficulty]
    fat, girth = float(rng.uniform(7, 28)), float(rng.uniform(0.95, 1.06))
    viscera = Viscera(rng, hu, amount, hard)
    parts = (
        *_body(fat), *_chest(rng, hu), *viscera.bowel(), *_muscles(rng), *viscera.organs(),
        *_vessels(rng, hu), *_bones(rng, girth), *viscera.tumours(),
    )  # fmt: skip
    return Anatomy(parts, phase, float(rng.uniform(0.97, 1.13)), fat, girth, _waves(rng, amount))


def _waves(rng: np.random.Generator, amount: float) -> Waves:
    """Draw long waves that shift and shear the organs and short ones that make their surfaces uneven."""
    lengths = np.concatenate([rng.uniform(150, 320, 5), rng.uniform(45, 75, 4), rng.uniform(22, 32, 3)])
    aims = rng.normal(size=(len(lengths), 3))
    aims /= np.linalg.norm(aims, axis=1, keepdims=True)
    sizes = amount * np.concatenate([np.full(5, 2.6), np.full(4, 1.1), np.full(3, 0.45)])
    amplitudes = rng.normal(size=aims.shape) * sizes[:, None]
    return 2 * np.pi / lengths[:, None] * aims, rng.uniform(0, 2 * np.pi, len(lengths)), amplitudes


def _body(fat_mm: float) -> list[Part]:
    """Make couch, skin, subcutaneous fat, the muscles of the wall and the fat of the cavity."""
    outer, back = 11 + fat_mm, 94 + 11 + 0.75 * fat_mm

    def fat_outside(scene: Scene) -> Array:  # thinner at the flanks' front, flattened by the couch
        _, y, x = scene.rigid
        uneven = 1 + 0.22 * np.cos(2 * np.arctan2(x, y)) * np.clip(y / 80, -1, 0.2)
        return np.asarray(np.minimum(scene.wall + 11 + fat_mm * uneven, back + 1 - y), np.float32)

    def couch(scene: Scene) -> Array:
        _, y, x = scene.rigid
        top = back + 9 - 0.00115 * x * x
        return np.asarray(np.minimum(np.minimum(y - top, top + 38 - y), 205 - np.abs(x)), np.float32)

    def mattress(scene: Scene) -> Array:
        _, y, x = scene.rigid
        top = back + 9 - 0.00115 * x * x
        return np.asarray(np.minimum(np.minimum(y - (back + 2), top - y), 190 - np.abs(x)), np.float32)

    return [
        Part(mattress, -930),
        Part(couch, -180),
        Part(dilate(couch, -2.5), -905),
        Part(fat_outside, 5, high=(1e4, back + 20, outer + 190)),
        Part(dilate(fat_outside, -2.2), -106),
        Part(lambda s: s.wall + 11, 54),
        Part(lambda s: np.minimum(np.minimum(s.wall + 6, 2.2 - np.abs(s.rigid[2])), -s.rigid[1]), -60),
        Part(lambda s: s.wall, _strands),
    ]


def _strands(scene: Scene) -> Array:
    """Return the mesenteric fat with its fine vessels."""
    pattern = np.sin(scene.z / 4.1 + 2 * np.sin(scene.x / 13)) * np.sin(scene.x / 5.3) * np.sin(scene.y / 4.7)
    return np.asarray(-103 + 60 * np.clip(pattern - 0.55, 0, 1), np.float32)


def _chest(rng: np.random.Generator, hu: dict[str, float]) -> list[Part]:
    """Make lungs, heart and diaphragm, as far as they are in view."""
    heart = ellipsoid((126, -38, 24), (34, 44, 58), 20)

    def lung(scene: Scene) -> Array:
        _, y, x = scene.rigid
        middle = (np.sqrt(((x - 4) / 42) ** 2 + ((y + 14) / 78) ** 2) - 1) * np.float32(40)
        spine = np.sqrt(x * x + (y - 50) ** 2) - 27
        return common(scene.wall - 2.5, -scene.below, middle, spine)

    def lung_hu(scene: Scene) -> Array:
        z, y, x = scene.z, scene.y, scene.x
        vessels = np.sin(z / 5 + np.sin(x / 9)) * np.sin(y / 6 + np.sin(z / 11)) * np.sin(x / 7)
        return np.asarray(-860 + 0.5 * (y + 90) + 900 * np.clip(np.abs(vessels) - 0.72, 0, 1), np.float32)

    top = (20, -200, -200)
    return [
        Part(lambda s: np.minimum(s.wall, 3 - np.abs(s.below)), 50, low=top),
        Part(lambda s: np.minimum(s.wall, -s.below - 2), -95, low=top),
        Part(lung, lung_hu, low=top),
        Part(lambda s: np.minimum(heart(s) + 5, -s.below), -90, low=(70, -110, -70), high=(200, 60, 120)),
        Part(lambda s: np.minimum(heart(s), -s.below - 3), hu["heart"], low=(70, -110, -70), high=(200, 60, 120)),
    ]


def _muscles(rng: np.random.Generator) -> list[Part]:
    """Make the muscles along the spine."""
    big = rng.uniform(0.85, 1.15)
    parts = []
    for side in (-1, 1):
        psoas = tube([(35, 46, side * 22, 5 * big), (-40, 42, side * 32, 14 * big), (-160, 30, side * 52, 21 * big)])
        quadratus = ellipsoid((-60, 62, side * 62), (75, 8 * big, 22), side * 18, rigid=True)
        parts += [
            Part(psoas, 56, low=(-190, -5, -95), high=(60, 80, 95)),
            Part(quadratus, 54, low=(-150, 35, -100), high=(30, 90, 100)),
            Part(_erector(side, big), _marble, low=(-300, 45, -85), high=(300, 125, 85)),
        ]
    return parts


def _erector(side: int, big: float) -> Solid:
    def depth(scene: Scene) -> Array:
        _, y, x = scene.rigid
        u, v = (x - side * 35) / (31 * big), (y - 82) / (19 * big)
        return np.asarray((1 - np.sqrt(u * u + v * v)) * 22, np.float32)

    return depth


def _marble(scene: Scene) -> Array:
    _, y, x = scene.rigid
    return np.asarray(52 - 45 * np.clip(np.sin(x / 4.3 + np.sin(y / 5)) * np.sin(y / 3.7) - 0.6, 0, 1), np.float32)


def _bones(rng: np.random.Generator, girth: float) -> list[Part]:
    """Make vertebrae with discs and processes, ribs and the crests of the pelvis."""
    pitch, start = rng.uniform(31, 36), rng.uniform(0, 30)
    cortex, marrow = rng.uniform(420, 620), rng.uniform(130, 230)

    def height(scene: Scene) -> Array:  # signed distance from the middle of the nearest vertebra
        return np.asarray(np.mod(scene.rigid[0] + start + pitch / 2, pitch) - pitch / 2, np.float32)

    def column(scene: Scene) -> Array:
        _, y, x = scene.rigid
        u, v = x / 22, (y - 47) / 16.5
        return np.asarray((1 - np.sqrt(u * u + v * v)) * 19 - 0.02 * (pitch / 2 - np.abs(height(scene))), np.float32)

    def body(scene: Scene) -> Array:
        return common(column(scene), pitch / 2 - 4.5 - np.abs(height(scene)))

    def arch(scene: Scene) -> Array:
        _, y, x = scene.rigid
        ring = 4.2 - np.abs(np.sqrt(x * x + (y - 71) ** 2) - 13)
        spine = np.minimum(3.4 - np.abs(x), np.minimum(y - 80, 101 - y))
        processes = np.minimum(np.minimum(4.5 - np.abs(y - 69 - 0.12 * np.abs(x)), np.abs(x) - 12), 40 - np.abs(x))
        processes = np.minimum(processes, 6 - np.abs(height(scene) - 3))
        spine = np.minimum(spine, 11 - np.abs(height(scene) + 4))
        ring = np.minimum(ring, 13 - np.abs(height(scene)))
        return np.asarray(np.maximum(np.maximum(ring, spine), processes), np.float32)

    def canal(scene: Scene) -> Array:
        _, y, x = scene.rigid
        return np.asarray(9.5 - np.sqrt(x * x + (y - 71) ** 2), np.float32)

    low, high = (-300.0, 20.0, -60.0), (300.0, 115.0, 60.0)
    parts = [
        Part(dilate(column, -0.5), 85, low, high),
        Part(body, cortex, low, high),
        Part(dilate(body, -2.0), marrow, low, high),
        Part(arch, 0.8 * cortex, low, high),
        Part(dilate(arch, -2.4), marrow + 120, low, high),
        Part(canal, 22, low, high),
        Part(dilate(canal, -3.5), 38, low, high),
        *_ribs(rng, cortex),
    ]
    for side in (-1, 1):
        wing = _crest(side, girth)
        low, high = (-400.0, -70.0, -170.0), (-95.0, 95.0, 170.0)
        parts += [Part(wing, cortex, low, high), Part(dilate(wing, -2.2), marrow + 60, low, high)]
    return parts


def _ribs(rng: np.random.Generator, cortex: float) -> list[Part]:
    """Make ribs as bands within the wall that fall towards the front and end in cartilage."""
    pitch, lowest = rng.uniform(26, 30), rng.uniform(2, 14)

    def band(scene: Scene) -> tuple[Array, Array, Array]:  # depth, turn, number of the rib
        z, y, x = scene.rigid
        turn = np.arctan2(np.abs(x), y) / np.float32(np.pi)  # 0 behind, 1 in front
        raised = z + 175 * np.minimum(turn, 0.72) - 130 * np.clip(turn - 0.72, 0, 1) - 45
        number = np.clip(np.rint((raised - lowest) / pitch), 0, 12)
        off = (raised - lowest - number * pitch) * np.float32(0.93)
        flat = np.sqrt((off / 5.6) ** 2 + ((scene.wall + 5.5) / 3.9) ** 2)
        return _f32((1 - flat) * 4.6), _f32(turn), _f32(number)

    def bone(scene: Scene) -> Array:
        depth, turn, number = band(scene)
        end = np.minimum(0.42 + 0.12 * number, 0.76)
        return np.asarray(np.minimum(depth, np.minimum(end - turn, turn - 0.11) * 200), np.float32)

    def cartilage(scene: Scene) -> Array:
        depth, turn, number = band(scene)
        return np.asarray(np.minimum(depth, np.where(number >= 2, 0.94 - turn, -1) * 200), np.float32)

    low = (-70.0, -200.0, -200.0)
    return [
        Part(cartilage, 95, low),
        Part(bone, 0.85 * cortex, low),
        Part(dilate(bone, -1.8), 200, low),
    ]


def _crest(side: int, girth: float) -> Solid:
    """Make one iliac wing: a bowed plate that fans out from the sacrum and stands on the lower edge of the view."""

    def depth(scene: Scene) -> Array:
        z, y, x = scene.rigid
        across = side * x / girth
        arc = np.sqrt(((across - 30) / 86) ** 2 + ((y - 2) / 68) ** 2)
        plate = 4.6 - 68 * np.abs(arc - 1 - 0.0022 * (z + 112))
        crest = -107 - 0.011 * (y - 8) ** 2 - z
        return np.asarray(np.minimum(np.minimum(plate, crest), across - 34), np.float32)

    return depth


def _vessels(rng: np.random.Generator, hu: dict[str, float]) -> list[Part]:
    """Make the great vessels and the branches that a slice shows at once."""
    bend = rng.normal(0, 3, 4)
    aorta = [(200, 34, 16, 12.5), (60, 22, 9 + bend[0], 11.5), (-40, 19, 7 + bend[1], 10.0), (-105, 20, 4, 9.5)]
    cava = [(120, 8, -24, 12.0), (70, 18, -24, 12.5), (-20, 21, -20 + bend[2], 11.5), (-108, 24, -15, 11.5)]
    arteries = [
        [(8, 13, 8, 4.2), (-4, 4, 5, 4.2), (-60, -8, 1, 3.4), (-110, -20, -6, 2.4)],
        [(26, 12, 8, 4.2), (28, 1, 7, 4.0), (30, -2, -10, 3.2), (34, 0, -34, 2.8)],
        [(-4, 22, 8, 3.2), (-4, 33, 42, 2.8)],
        [(-8, 22, 0, 3.2), (-14, 36, -42, 2.8)],
    ]
    veins = [
        [(0, 10, -20, 4.6), (0, 8, 10, 4.4), (0, 32, 42, 4.0)],
        [(-10, 22, -28, 4.4), (-14, 36, -44, 4.0)],
    ]
    portal = [
        [(36, 20, 76, 4.2), (27, 6, 45, 4.4), (15, -4, 16, 4.8), (9, -4, -10, 5.6), (34, -3, -38, 6.5)],
        [(9, -4, -10, 5.4), (-40, -12, -8, 4.6), (-110, -22, -14, 3.0)],
    ]
    iliac = [[(-103, 20, 4, 8.0), (-160, 14, side * 34, 6.0)] for side in (-1, 1)]
    iliac_veins = [[(-104, 24, -14, 8.5), (-160, 24, side * 32 - 6, 7.5)] for side in (-1, 1)]
    calcified = ellipsoid((-70 + 4 * bend[3], 26, 12), (9, 1.8, 4))
    return [
        *_tubes([cava], hu["cava"], flat=1.25), *_tubes([*veins, *iliac_veins], hu["cava"]),
        *_tubes(portal, hu["portal"]), *_tubes(arteries, hu["aorta"]), *_tubes([aorta, *iliac], hu["aorta"]),
        Part(calcified, 650, (-110, 10, -10), (-30, 40, 35)),
    ]  # fmt: skip


def _tubes(paths: Sequence[Path], hu: float, flat: float = 1.0) -> list[Part]:
    return [tube_part(tube(path, flat=flat), path, hu) for path in paths]

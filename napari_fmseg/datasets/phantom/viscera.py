"""The organs of the belly, its bowel and its tumours, drawn at random about their usual place, size and density."""

from __future__ import annotations

import numpy as np

from napari_fmseg.datasets.phantom.solids import (
    Array,
    Part,
    Path,
    Point,
    Scene,
    Solid,
    common,
    dilate,
    ellipsoid,
    nearest,
    smooth_path,
    smooth_union,
    tube,
    tube_part,
    within,
)

__all__ = ["LABELS", "Viscera"]

LABELS = {1: "liver", 2: "kidneys", 3: "spleen", 4: "pancreas", 5: "tumour"}
LIVER, KIDNEYS, SPLEEN, PANCREAS, TUMOUR = LABELS


class Viscera:
    """What one patient has in the belly.

    Parameters
    ----------
    rng
        Draws everything.
    hu
        Density of each tissue; see `anatomy.PHASES`.
    amount
        How far the patient differs from the standard one; 1 is usual.
    hard
        Whether tumours differ little from their organ.
    """

    def __init__(self, rng: np.random.Generator, hu: dict[str, float], amount: float, hard: bool) -> None:
        self.rng, self.hu, self.amount, self.hard = rng, hu, amount, hard
        self.kidney_places = [self._shift((-10, 46, -65), 5), self._shift((8, 45, 64), 5)]
        self.kidney_sizes = [float(np.clip(rng.normal(0.96, 0.06), 0.82, 1.1)) for _ in range(2)]
        self.kidneys = [self._kidney(side) for side in range(2)]
        self.spleen = self._spleen()
        self.pancreas_path = self._pancreas_path()
        self.pancreas = _with_lobules(tube(self.pancreas_path), 1.3, 5.5)
        self.liver = self._liver()

    def _shift(self, place: Point, mm: float) -> Point:
        z, y, x = np.asarray(place) + self.amount * self.rng.normal(0, mm, 3) * (1, 0.5, 0.5)
        return (float(z), float(y), float(x))

    def _size(self, radii: Point, spread: float = 0.07) -> Point:
        z, y, x = np.asarray(radii) * np.clip(self.rng.normal(1, self.amount * spread, 3), 0.8, 1.25)
        return (float(z), float(y), float(x))

    # --- shapes

    def _liver(self) -> Solid:
        right = ellipsoid(self._shift((44, -2, -70), 3), self._size((80, 78, 66)), 8, plane="zx")
        left = ellipsoid(self._shift((66, -50, -6), 4), self._size((33, 36, 84), 0.1), -16, plane="zx")
        tip = ellipsoid(self._shift((-8, 12, -96), 6), self._size((56, 44, 30), 0.1))
        caudate = ellipsoid((62, 4, -18), (30, 20, 18))
        porta = ellipsoid(self._shift((-2, 10, -2), 3), (52, 50, 62))
        groove = ellipsoid((34, 4, -22), (30, 12, 16))
        kidney = self.kidneys[0]

        def depth(scene: Scene) -> Array:
            d = smooth_union(smooth_union(right(scene), left(scene), 14), tip(scene), 16)
            d = common(d, -smooth_union(porta(scene), groove(scene), 8))
            d = smooth_union(d, caudate(scene), 6)
            d = common(d, -kidney(scene) - 5)
            return common(d, scene.wall - 2.5, scene.below - 3)

        return depth

    def _kidney(self, side: int) -> Solid:
        size, sign = self.kidney_sizes[side], (-1, 1)[side]
        outer = ellipsoid(self.kidney_places[side], (56 * size, 25 * size, 29 * size), 10 * sign, plane="zx")
        sinus = self._sinus(side, 1.0)
        return lambda s: common(outer(s), -sinus(s))

    def _sinus(self, side: int, share: float) -> Solid:
        (z, y, x), size, sign = self.kidney_places[side], self.kidney_sizes[side], (-1, 1)[side]
        radii = (23 * size * share, 9 * size * share, 17 * size * share)
        return ellipsoid((z, y - 7, x - sign * 17 * size), radii, 10 * sign, plane="zx")

    def _spleen(self) -> Solid:
        outer = ellipsoid(self._shift((54, 34, 96), 4), self._size((54, 48, 33), 0.11), -12, plane="zy")
        hollow = ellipsoid((64, -14, 60), (42, 38, 34))
        kidney = self.kidneys[1]

        def depth(scene: Scene) -> Array:
            d = common(outer(scene), -hollow(scene) - 1)
            d = common(d, -kidney(scene) - 4)
            return common(d, scene.wall - 3.5, scene.below - 3.5)

        return depth

    def _pancreas_path(self) -> list[tuple[float, float, float, float]]:
        thick = float(np.clip(self.rng.normal(1, 0.1), 0.8, 1.2))
        lift = self.amount * self.rng.normal(0, 5)
        path = [
            (-24, 6, -33, 13),
            (-12, 2, -31, 16),
            (2, -8, -20, 12.5),
            (9, -19, -4, 9.5),
            (15 + lift / 2, -20, 14, 10.5),
            (24 + lift, -6, 40, 10.5),
            (33 + lift, 12, 62, 9.5),
            (39 + lift, 22, 73, 6.5),
        ]
        return [(z, y, x, r * thick) for z, y, x, r in path]

    # --- parts

    def organs(self) -> list[Part]:
        """Make stomach, duodenum, pancreas, spleen, kidneys, adrenals, liver and gall bladder, back to front."""
        return [
            *self._stomach(),
            *self._pancreas_parts(),
            *self._kidney_parts(),
            *self._spleen_parts(),
            *self._liver_parts(),
        ]

    def _liver_parts(self) -> list[Part]:
        low, high = (-95, -130, -160), (150, 110, 110)
        hepatic: list[Path] = [
            [(112, 8, -26, 6), (84, 6, -48, 5), (55, 8, -92, 3)],
            [(112, 8, -25, 5.5), (84, -28, -38, 4.5), (55, -52, -50, 2.6)],
            [(112, 6, -22, 5), (86, -28, -8, 4), (72, -52, 14, 2.4)],
        ]
        portal: list[Path] = [
            [(34, -3, -38, 6.5), (42, -2, -62, 5.4), (30, 14, -98, 3.2)],
            [(42, -2, -60, 5), (62, -10, -92, 3.2)],
            [(34, -4, -38, 5.5), (58, -32, -22, 4.5), (66, -54, 10, 2.6)],
            [(40, -2, -66, 4), (14, -14, -92, 2.6)],
        ]
        parts = [Part(self.liver, self.hu["liver"], low, high, LIVER)]
        for paths, vessel in ((hepatic, "cava"), (portal, "portal")):
            for path in paths:
                hu = self.hu["liver"] + 0.75 * (self.hu[vessel] - self.hu["liver"])
                parts.append(tube_part(within(tube(path), self.liver, -1), path, hu, None))
        ligament = ellipsoid((40, -62, -14), (26, 26, 2.4), 6)
        parts.append(Part(lambda s: common(ligament(s), 38 - s.wall), -70, (0, -110, -40), (80, -20, 15), 0))
        full = float(self.rng.uniform(0.6, 1.15))
        usual = [(-22, -52, -52, 12), (-8, -40, -46, 13), (8, -26, -40, 8), (16, -16, -36, 3.5)]
        bladder = [(z, y, x, r * full) for z, y, x, r in usual]
        solid = tube(bladder)
        parts += [tube_part(dilate(solid, 1.6), bladder, 45), tube_part(solid, bladder, 9)]
        return parts

    def _spleen_parts(self) -> list[Part]:
        hu, rng = self.hu["spleen"], self.rng
        low, high = (-20, -50, 30), (135, 110, 150)
        parts = [Part(self.spleen, hu, low, high, SPLEEN)]
        if hu > 110 and self.hu["aorta"] > 220:  # arterial: the pulp takes up the medium in bands
            pitch = rng.uniform(11, 15)
            parts = [Part(self.spleen, lambda s: _bands(s, hu, pitch), low, high, SPLEEN)]
        return parts

    def _pancreas_parts(self) -> list[Part]:
        c = [
            (26, -36, -18, 11),
            (20, -38, -40, 12),
            (8, -14, -54, 11),
            (-22, 4, -55, 11),
            (-44, 12, -32, 10),
            (-46, 4, 0, 9.5),
            (-34, 0, 26, 9.5),
        ]
        gut = tube(c)
        wall = self.hu["bowel"]
        parts = [tube_part(gut, c, wall), tube_part(dilate(gut, -2.8), c, float(self.rng.uniform(5, 35)))]
        fatty = float(self.rng.uniform(0, 45)) * self.amount

        def lobes(scene: Scene) -> Array:
            wave = np.sin(scene.x / 2.9 + 1.3 * np.sin(scene.z / 4)) * np.sin(scene.z / 3.3) * np.sin(scene.y / 3.1)
            return np.asarray(self.hu["pancreas"] - fatty * np.clip(np.abs(wave) - 0.3, 0, 1), np.float32)

        parts.append(tube_part(self.pancreas, self.pancreas_path, lobes, PANCREAS, 14))
        return parts

    def _kidney_parts(self) -> list[Part]:
        parts = []
        for side, sign in enumerate((-1, 1)):
            kidney, (z, y, x) = self.kidneys[side], self.kidney_places[side]
            low, high = (z - 85, y - 50, x - 55), (z + 85, y + 50, x + 55)
            sinus, cleft = self._sinus(side, 1.0), ellipsoid((z, y - 12, x - sign * 28), (14, 10, 16))
            around = ellipsoid((z, y + 2, x), (72, 36, 40), 10 * sign, plane="zx")
            parts += [
                Part(within(around, lambda s: s.wall, -1), -105, low, high),
                Part(kidney, self.hu["cortex"], low, high, KIDNEYS),
                *self._pyramids(side, low, high),
                Part(sinus, -85, low, high),
                Part(cleft, -85, low, high),
                Part(self._sinus(side, 0.55), 14, low, high),
                Part(ellipsoid((z - 3, y - 11, x - sign * 26), (8, 4.5, 13), 10 * sign), 14, low, high),
            ]
            ureter = [(z - 12, y - 10, x - sign * 32, 2.6), (z - 60, 34, sign * 36, 2.4), (-150, 10, sign * 34, 2.4)]
            parts.append(tube_part(tube(ureter), ureter, 12))
            gland = z + 58 * self.kidney_sizes[side]
            for turn in (35, -35):
                limb = ellipsoid((gland, 36, sign * 38), (14, 13, 2.8), sign * turn)
                parts.append(Part(limb, 0.5 * self.hu["spleen"] + 15, (gland - 30, 5, -80), (gland + 30, 70, 80)))
        return parts

    def _pyramids(self, side: int, low: Point, high: Point) -> list[Part]:
        """Make the medulla: cones about the sinus, left out where they would look like the cortex."""
        if self.hu["cortex"] - self.hu["medulla"] < 8:
            return []
        (z, y, x), size, sign = self.kidney_places[side], self.kidney_sizes[side], (-1, 1)[side]
        parts = []
        for turn in np.linspace(-150, 150, 9):
            c, s = np.cos(np.radians(turn)), np.sin(np.radians(turn))
            centre = (z + 31 * size * s, y + (4 if abs(turn) < 120 else -3), x + sign * (10 * c + 1) * size)
            cone = ellipsoid(centre, (8 * size, 9 * size, 7.5 * size), float(sign * turn), plane="zx")
            medulla = within(cone, self.kidneys[side], -5)
            parts.append(Part(medulla, self.hu["medulla"], low, high, None))
        return parts

    def _stomach(self) -> list[Part]:
        full = float(self.rng.uniform(0.82, 1.12))
        usual = [
            (80, 14, 58, 28),
            (66, 2, 66, 33),
            (44, -24, 68, 30),
            (20, -46, 54, 25),
            (4, -54, 26, 19),
            (8, -52, 0, 14),
            (20, -42, -16, 9),
        ]
        path = [(z, y, x, r * full) for z, y, x, r in usual]
        bag = tube(path)
        level = float(self.rng.uniform(-42, -18))  # the patient lies on the back: gas floats to the front
        food = float(self.rng.choice([8, 20, 35, 220], p=[0.4, 0.3, 0.2, 0.1]))

        def inside(scene: Scene) -> Array:
            return common(bag(scene), scene.wall - 4, scene.below - 4)

        def contents(scene: Scene) -> Array:
            lumps = np.sin(scene.x / 5 + np.sin(scene.z / 4)) * np.sin(scene.y / 5) * np.sin(scene.z / 6)
            return np.asarray(food + 25 * lumps, np.float32)

        return [
            tube_part(inside, path, self.hu["bowel"]),
            tube_part(dilate(inside, -4.5), path, contents),
            tube_part(lambda s: common(inside(s) - 4, level - s.rigid[1]), path, -985),
        ]

    def bowel(self) -> list[Part]:
        """Make small bowel loops, then the colon around them."""
        rng, parts = self.rng, []
        for _ in range(int(rng.integers(26, 38))):
            start = np.array([rng.uniform(-150, -28), rng.uniform(-68, 10), rng.uniform(-72, 78)])
            steps = rng.normal(0, 1, (4, 3)) * (16, 13, 22)
            places = np.clip(start + np.cumsum(steps, 0), (-165, -74, -84), (-24, 16, 86))
            radius = rng.uniform(9, 13.5)
            path = [(float(z), float(y), float(x), float(radius)) for z, y, x in places]
            loop = _inside(tube(path), 2.5)
            parts += [tube_part(dilate(loop, 1.2), path, -85)]
            parts += [tube_part(loop, path, self.hu["bowel"])]
            filling = float(rng.choice([12, 28, 45, 250], p=[0.35, 0.35, 0.2, 0.1]))
            parts += [tube_part(dilate(loop, -2.4), path, filling)]
            if rng.random() < 0.22:
                parts += [tube_part(_gas(path, 3.0, float(rng.uniform(-2, 6)), 2.5), path, -940)]
        return [*parts, *self._colon()]

    def _colon(self) -> list[Part]:
        rng = self.rng
        sag = rng.uniform(-40, 5)
        right: Path = [(-165, 10, -84, 21), (-120, 16, -98, 25), (-70, 18, -100, 22), (-36, 2, -92, 20)]
        across: Path = [
            (-36, 2, -92, 19),
            (-44, -44, -72, 18),
            (sag - 18, -66, -20, 18),
            (sag - 10, -66, 34, 17),
            (4, -38, 88, 17),
            (22, 8, 106, 16),
        ]
        left: Path = [(22, 8, 106, 15), (-30, 28, 106, 13), (-90, 26, 106, 12.5), (-165, 8, 98, 13)]
        parts = []
        for usual in (left, across, right):
            size = rng.uniform(0.72, 1.05)
            path = [(float(z), float(y), float(x), float(r * size)) for z, y, x, r in usual]
            wave, phase = rng.uniform(4.6, 6.5), rng.uniform(0, 6)
            gut = _inside(_with_haustra(tube(path), float(wave), float(phase)), 2)
            gas = _with_haustra(_gas(path, 2.2, float(rng.uniform(-9, 9)), 2), float(wave), float(phase))
            parts += [
                tube_part(dilate(gut, 1.5), path, -90),
                tube_part(gut, path, self.hu["bowel"]),
                tube_part(dilate(gut, -2), path, _stool),
                tube_part(gas, path, -970),
            ]
        return parts

    def tumours(self) -> list[Part]:
        """Make one to three lesions in liver, kidneys or pancreas, each with its centre inside its organ."""
        rng = self.rng
        hosts = rng.choice(["liver", "cortex", "pancreas"], size=int(rng.integers(1, 4)), p=[0.7, 0.18, 0.12])
        return [part for host in hosts for part in self._tumour(str(host))]

    def _tumour(self, host: str) -> list[Part]:
        rng, native = self.rng, self.hu["aorta"] < 80
        side = int(rng.integers(2))
        solid, low, high, radius = {
            "liver": (self.liver, (-20, -80, -125), (105, 60, 20), rng.uniform(7, 27)),
            "cortex": (self.kidneys[side], *_around(self.kidney_places[side], 45), rng.uniform(9, 20)),
            "pancreas": (self.pancreas, (-25, -30, -45), (40, 20, 70), rng.uniform(7, 13)),
        }[host]
        z, y, x = rng.uniform(low, high, (400, 3)).astype(np.float32).T.reshape(3, 400, 1, 1)
        far = np.full_like(z, 99)
        depth = solid(Scene(z, y, x, (z, y, x), far, far)).ravel()
        # at least half of the lesion inside; the deepest place if there is none such
        best = int(np.argmax(depth >= 0.5 * radius)) if (depth >= 0.5 * radius).any() else int(np.argmax(depth))
        centre = (float(z[best, 0, 0]), float(y[best, 0, 0]), float(x[best, 0, 0]))
        drop = rng.uniform(14, 24) if self.hard or native else rng.uniform(32, 60)
        drop = {"liver": drop, "cortex": (1.6 if not native else 0.3) * drop, "pancreas": 0.8 * drop}[host]
        radii = self._size((radius, radius, radius), 0.12)
        lump = _with_lobules(ellipsoid(centre, radii, float(rng.uniform(0, 90))), 0.07 * radius, 0.35 * radius + 2)
        if host == "liver":
            lump = within(lump, self.liver, 0.5)
        elif host == "pancreas":
            lump = within(lump, self.pancreas, 5)  # it may bulge
        box = _around(centre, radius * 1.4 + 14)
        hu = self.hu[host] - drop
        parts = [Part(lump, hu, *box, TUMOUR)]
        if radius > 15 and not native:
            parts.append(Part(dilate(lump, -0.45 * radius), hu - rng.uniform(15, 30), *box, TUMOUR))  # necrosis
        return parts


def _around(centre: Point, mm: float) -> tuple[Point, Point]:
    z, y, x = centre
    return (z - mm, y - mm, x - mm), (z + mm, y + mm, x + mm)


def _inside(solid: Solid, mm: float) -> Solid:
    """Keep a solid `mm` within the wall and below the diaphragm."""
    return lambda s: common(solid(s), s.wall - mm, s.below - mm)


def _with_lobules(solid: Solid, mm: float, length_mm: float) -> Solid:
    """Make the surface of a solid uneven."""

    def depth(scene: Scene) -> Array:
        z, y, x = (a / np.float32(length_mm) for a in (scene.z, scene.y, scene.x))
        wave = np.sin(x + np.sin(y)) + np.sin(y + np.sin(z)) + np.sin(z + np.sin(x))
        return np.asarray(solid(scene) + np.float32(0.6 * mm) * wave, np.float32)

    return depth


def _with_haustra(solid: Solid, wave_mm: float, phase: float) -> Solid:
    """Add the haustra of the colon to a gut."""

    def depth(scene: Scene) -> Array:
        along = (scene.z + 0.8 * scene.x) / np.float32(wave_mm) + np.float32(phase)
        return np.asarray(solid(scene) - 2.4 * np.abs(np.cos(along)) ** 3, np.float32)

    return depth


def _gas(path: Path, wall_mm: float, level_mm: float, inset: float) -> Solid:
    """Return the gas in front in a gut: flat against what lies below it."""
    knots = smooth_path(path)

    def depth(scene: Scene) -> Array:
        d, axis = nearest(scene, knots, 1.0, False)
        d = common(d, scene.wall - inset) - wall_mm
        return np.asarray(common(d, axis + level_mm - scene.y), np.float32)

    return depth


def _stool(scene: Scene) -> Array:
    """Return the density of stool: mottled with gas."""
    x, y, z = scene.x, scene.y, scene.z
    mottle = np.sin(x / 2.7 + 2 * np.sin(z / 3.7)) * np.sin(y / 2.9 + np.sin(x / 4.1)) * np.sin(z / 3.1)
    return np.asarray(35 - 520 * np.clip(mottle - 0.25, 0, 1), np.float32)


def _bands(scene: Scene, hu: float, pitch: float) -> Array:
    wave = np.sin((scene.x + 6 * np.sin(scene.z / 12)) / pitch * 3) * np.sin((scene.y + scene.z) / pitch * 2)
    return np.asarray(hu + 22 * wave, np.float32)

"""How fast a model's labels become right: a simulated user, and the times of the tools of correction.

    python benchmarks/correcting.py simulate [--sets atrium pet head heart] [--cards head=runs/head/my-model.toml]
    python benchmarks/correcting.py times

The user corrects the slice with most wrong voxels, again and again: by painting alone; with Spread pressed after every
slice; or paints every 2nd, 3rd, 5th and 10th slice of an empty volume and presses Fill. Dice is the mean over the
classes of a case, then over the cases of the validation list (`--development`: training cases that the model did not
learn from, by which variants are chosen), beside the number of corrected slices and the seconds of the user. "Six of
each" and "goal of each": every structure is corrected on its own, in six slices or until its Dice is 0.95.

Seconds of the user are estimated, not measured: see `Cost`. Models: those that benchmarks/learning.py trains in 8
minutes from 8 volumes, and lesion-pet. Their predictions are kept under --work, so that a second run takes
seconds. Data: the folder FMSEG_SHARED (by default ../shared beside the project). Every finished case is written to
benchmarks/results/correcting.json at once; the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from napari_fmseg.core.events import drain
from napari_fmseg.evaluation.machine import machine_facts
from napari_fmseg.io import read_labels, read_volume
from napari_fmseg.models.weights import load_model
from napari_fmseg.pipelines import SegmentOptions, segment
from napari_fmseg.pipelines import correction as tools

ROOT = Path(__file__).parents[1]
SHARED = Path(os.environ.get("FMSEG_SHARED", ROOT.parent / "shared")) / "data"
TAUGHT = "runs/learning/{}-8-8min-seed0/run/my-model.toml"
SETS = {
    "atrium": ("la_mr", TAUGHT.format("atrium")),
    "pet": ("lbt_pet", "weights/research/lesion-pet.toml"),
    "head": ("hn_ct", TAUGHT.format("head")),
    "heart": ("acdc", TAUGHT.format("heart")),
}
AXIS = 0
EVERY = (2, 3, 5, 10)
SHOWN = (1, 2, 3, 4, 6, 8, 10)
SIX = 6
GOAL = 0.95


@dataclass(frozen=True)
class Cost:
    """Seconds that a user needs, by our estimate."""

    slice: float = 4.0  # to go to a slice and to look at it
    structure: float = 2.0  # to choose a class that is wrong there
    mm_per_second: float = 15.0  # border that is drawn with the brush
    press: float = 3.0  # to press a tool, look at its preview and accept it

    def paint(self, labels: np.ndarray, truth: np.ndarray, spacing: tuple[float, ...]) -> float:
        """Return the seconds to make one slice right."""
        seconds = self.slice
        for value in set(np.unique(labels[labels != truth])) | set(np.unique(truth[labels != truth])):
            own, wrong = truth == value, (labels == value) != (truth == value)
            if value == 0 or not wrong.any():
                continue
            border = own & ~ndimage.binary_erosion(own) & ndimage.binary_dilation(wrong)
            alone = wrong & ~ndimage.binary_propagation(ndimage.binary_dilation(own) & wrong, mask=wrong)
            border |= alone & ~ndimage.binary_erosion(alone)
            seconds += self.structure + border.sum() * float(np.mean(spacing)) / self.mm_per_second
        return seconds


def dice(labels: np.ndarray, truth: np.ndarray, values: list[int]) -> float:
    """Return the mean Dice over the classes that are in the truth."""
    found = []
    for value in values:
        a, b = labels == value, truth == value
        found.append(2 * np.count_nonzero(a & b) / max(1, np.count_nonzero(a) + np.count_nonzero(b)))
    return float(np.mean(found))


@dataclass(frozen=True)
class Scan:
    """A case with what the model predicted."""

    name: str
    truth: np.ndarray
    predicted: np.ndarray
    spacing: tuple[float, ...]

    @property
    def values(self) -> list[int]:
        """Classes in the truth."""
        return [int(value) for value in np.unique(self.truth) if value]

    def structures(self) -> list[Scan]:
        """Return the case with one class at a time, as a user corrects who finishes one structure after the other."""
        return [
            replace(self, truth=(self.truth == v).astype(np.uint8), predicted=(self.predicted == v).astype(np.uint8))
            for v in self.values
        ]


def scans(name: str, card: Path, work: Path, development: bool) -> Iterator[Scan]:
    """Yield the cases of a set; a prediction that is on disk is not made again."""
    folder = SHARED / SETS[name][0]
    facts = json.loads((folder / "dataset.json").read_text())
    cases = facts["validation"]
    if development:
        learned = card.parents[1] / "data" / "dataset.json"  # beside the run of benchmarks/learning.py
        known = {case["case"] for case in json.loads(learned.read_text())["training"]} if learned.exists() else set()
        cases = [case for case in facts["training"] if case["case"] not in known][::3]
    model = None
    for case in cases:
        image = case["image"] if isinstance(case["image"], str) else case["image"][0]
        labels = read_labels(folder / case["label"])
        kept = work / name / f"{case['case']}.npz"
        if not kept.exists():
            model = model or load_model(card, device="cpu")
            found = drain(segment(read_volume(folder / image), model, SegmentOptions()))
            kept.parent.mkdir(parents=True, exist_ok=True)
            np.savez_compressed(kept, predicted=found.data)
            print(f"{name}: {case['case']} predicted", flush=True)
        truth = labels.data.astype(np.uint8)
        yield Scan(case["case"], truth, np.load(kept)["predicted"].astype(np.uint8), labels.geometry.spacing)


def correct(scan: Scan, tool: str, rounds: int, cost: Cost, least: int) -> list[dict[str, float]]:
    """Correct the worst slice until Dice is 0.95, `least` to `rounds` times, or all is right; a row per round."""
    labels, corrected, seconds, actions = scan.predicted.copy(), scan.predicted.copy(), 0.0, 0
    chosen: list[int] = []
    rows = [{"slices": 0, "actions": 0, "seconds": 0.0, "dice": dice(labels, scan.truth, scan.values)}]
    for _ in range(rounds):
        wrong = np.count_nonzero(labels != scan.truth, axis=(1, 2))
        wrong[chosen] = 0
        worst = int(np.argmax(wrong))
        if not wrong[worst]:
            break
        seconds += cost.paint(labels[worst], scan.truth[worst], scan.spacing[1:])
        actions += 1
        chosen.append(worst)
        corrected[worst] = scan.truth[worst]
        labels = corrected.copy()
        if tool == "spread":
            tools.spread_correction(corrected, scan.predicted, chosen, AXIS, scan.spacing).apply(labels)
            seconds += cost.press
            actions += 1
        rows.append({"slices": len(chosen), "actions": actions, "seconds": seconds,
                     "dice": dice(labels, scan.truth, scan.values)})  # fmt: skip
        if rows[-1]["dice"] >= GOAL and len(chosen) >= least:
            break
    return rows


def fill(scan: Scan, every: int, cost: Cost) -> dict[str, float]:
    """Paint every n-th slice, and the first and last of every class, and fill between them."""
    labels, seconds = np.zeros_like(scan.truth), 0.0
    there = {value: np.flatnonzero((scan.truth == value).any(axis=(1, 2))) for value in scan.values}
    ends = {int(slices[k]) for slices in there.values() for k in (0, -1)}
    painted = sorted(ends | set(range(min(ends), max(ends), every)))
    for k in painted:
        seconds += cost.paint(labels[k], scan.truth[k], scan.spacing[1:])
        labels[k] = scan.truth[k]
    for value, slices in there.items():
        own = [k for k in painted if slices[0] <= k <= slices[-1]]
        if len(own) > 1:
            done = [other for other in scan.values if other < value]
            tools.fill_between_slices(labels, value, own, AXIS, scan.spacing, protected=done).apply(labels)
            seconds += cost.press
    return {"slices": len(painted), "actions": len(painted) + len(scan.values), "seconds": seconds,
            "dice": dice(labels, scan.truth, scan.values)}  # fmt: skip


def simulated(scan: Scan, rounds: int, cost: Cost) -> dict[str, Any]:
    """Return what all tools reach on one case."""
    row: dict[str, Any] = {f"fill every {n}": fill(scan, n, cost) for n in EVERY}
    for tool in ("plain", "spread"):
        found = correct(scan, tool, rounds, cost, SHOWN[-1])
        row[tool] = {str(k): found[min(k, len(found) - 1)] for k in (0, *SHOWN)}
        row[tool]["goal"] = next((step for step in found if step["dice"] >= GOAL), None)
        alone = [correct(part, tool, rounds, cost, SIX) for part in scan.structures()]
        six = [steps[min(SIX, len(steps) - 1)] for steps in alone]
        row[tool]["six of each"] = {
            "dice": float(np.mean([step["dice"] for step in six])),
            "seconds": sum(step["seconds"] for step in six),
        }
        goals = [next((step for step in steps if step["dice"] >= GOAL), None) for steps in alone]
        row[tool]["goal of each"] = None if None in goals else {
            what: sum(step[what] for step in goals) for what in ("slices", "actions", "seconds")
        }  # fmt: skip
    return row


def means(cases: dict[str, Any]) -> dict[str, Any]:
    """Return the means over the cases of one set."""
    rows = list(cases.values())

    def mean(read: Callable[[Any], float]) -> float:
        return round(float(np.mean([read(row) for row in rows])), 4)

    table: dict[str, Any] = {"cases": len(rows)}
    for n in EVERY:
        key = f"fill every {n}"
        table[key] = {what: mean(lambda r, k=key, w=what: r[k][w]) for what in ("slices", "seconds", "dice")}
    for tool in ("plain", "spread"):
        table[tool] = {
            k: {what: mean(lambda r, t=tool, k=k, w=what: r[t][k][w]) for what in ("seconds", "dice")}
            for k in (*map(str, (0, *SHOWN)), "six of each")
        }
        for goal in ("goal", "goal of each"):
            reached = [row[tool][goal] for row in rows if row[tool][goal]]
            table[tool][goal] = {"reached": len(reached)} | {
                what: round(statistics.median(r[what] for r in reached), 1)
                for what in ("slices", "actions", "seconds")
                if reached
            }
    return table


def simulate(options: argparse.Namespace, table: dict[str, Any], save: Callable[[], None]) -> None:
    """Simulate the user on every case that is not in the table yet."""
    cost = Cost()
    cards = dict(item.split("=", 1) for item in options.cards)
    place = table.setdefault("development" if options.development else "validation", {})
    table["cost"] = asdict(cost)
    for name in options.sets:
        card = Path(cards.get(name, SETS[name][1]))
        part = place.setdefault(name, {"cases": {}})
        for scan in scans(name, card if card.is_absolute() else ROOT / card, options.work, options.development):
            if scan.values and scan.name not in part["cases"]:
                row = json.dumps(simulated(scan, options.rounds, cost))
                part["cases"][scan.name] = json.loads(row, parse_float=lambda number: round(float(number), 4))
                save()
        part["all"] = means(part["cases"])
        save()
        print(f"{name}: {json.dumps(part['all'], indent=1)}", flush=True)


def phantom() -> tuple[np.ndarray, np.ndarray, tuple[float, float, float]]:
    """Return labels of 10 classes on 512 x 512 x 200, what a model predicted instead, and the spacing in mm."""
    shape, spacing = (200, 512, 512), (1.5, 0.8, 0.8)
    rng = np.random.default_rng(0)
    labels, predicted = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    for value in range(1, 11):
        radius = rng.uniform((25, 30, 30), (60, 80, 80))
        centre = rng.uniform(radius, np.array(shape) - radius)
        for array, moved in ((labels, 0.0), (predicted, rng.uniform(-5, 5, 3))):
            axes = np.ogrid[:200, :512, :512]
            inside = sum(((a - c) / r) ** 2 for a, c, r in zip(axes, centre + moved, radius, strict=True)) <= 1
            array[inside & (array == 0)] = value
    return labels, predicted, spacing


def times(options: argparse.Namespace, table: dict[str, Any], save: Callable[[], None]) -> None:
    """Measure every tool on 512 x 512 x 200: the visible slice and the whole."""
    truth, predicted, spacing = phantom()
    slices = list(range(20, 200, 20))
    corrected = predicted.copy()
    corrected[slices] = truth[slices]
    largest = int(np.argmax(np.bincount(truth.ravel())[1:])) + 1
    middle = int(np.argmax((truth == largest).sum(axis=(1, 2))))
    shown = middle + (middle % 20 == 0)
    position = tuple(int(v[len(v) // 2]) for v in np.nonzero(truth == largest))
    cut = np.zeros(truth.shape, bool)
    cut[:, :, position[2]] = True
    beside = (*position[:2], position[2] + 2)
    image = truth.astype(np.float32)
    spread = tools.CorrectionSpread(corrected, predicted, slices, AXIS, spacing)
    box, round_brush = tools.brush(position, 20, spacing, truth.shape)
    runs: dict[str, Callable[[], tools.Edit]] = {
        "fill between slices, visible": lambda: tools.fill_between_slices(
            corrected, largest, slices, AXIS, spacing, plane=shown
        ),
        "fill between slices, whole": lambda: tools.fill_between_slices(corrected, largest, slices, AXIS, spacing),
        "spread of 9 slices, visible": lambda: tools.spread_correction(
            corrected, predicted, slices, AXIS, spacing, plane=shown
        ),
        "spread of 9 slices, visible, another fade": lambda: spread.edit(3.0, shown),
        "spread of 9 slices, whole": lambda: tools.spread_correction(corrected, predicted, slices, AXIS, spacing),
        "smooth 3 mm, visible": lambda: tools.smooth(truth, largest, 3, spacing, plane=(0, shown)),
        "smooth 3 mm, whole": lambda: tools.smooth(truth, largest, 3, spacing),
        "grow 3 mm, visible": lambda: tools.grow(truth, largest, 3, spacing, plane=(0, shown)),
        "grow 3 mm, whole": lambda: tools.grow(truth, largest, 3, spacing),
        "shrink 3 mm, whole": lambda: tools.grow(truth, largest, -3, spacing),
        "fill holes, visible": lambda: tools.fill_holes(truth, largest, plane=(0, shown)),
        "fill holes, whole": lambda: tools.fill_holes(truth, largest),
        "keep island": lambda: tools.keep_component(truth, position),
        "remove island": lambda: tools.remove_component(truth, position),
        "split by a cut": lambda: tools.split_component(truth, beside, cut, 11),
        "threshold brush of 20 mm": lambda: tools.paint_within_range(truth, box, image, 0, 20, 12, brush=round_brush),
        "swap classes": lambda: tools.swap_classes(truth, 1, largest),
        "merge classes": lambda: tools.merge_classes(truth, 1, largest),
        "copy class": lambda: tools.copy_class(truth, largest, predicted, 12),
    }
    for name, run in runs.items():
        spent = []
        for _ in range(options.repeats):
            start, processor = time.perf_counter(), time.process_time()
            run()
            spent.append((time.perf_counter() - start, time.process_time() - processor))
        wall, processor = (round(1000 * statistics.median(column), 1) for column in zip(*spent, strict=True))
        table.setdefault("milliseconds", {})[name] = {"wall": wall, "processor": processor}
        table["machine"] = machine_facts()
        save()
        print(f"{name:45} {wall:9.1f} ms, {processor:9.1f} ms of the processor", flush=True)


def main() -> None:
    """Simulate or measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("simulate", "times"))
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--cards", nargs="*", default=[], metavar="SET=CARD", help="other models")
    parser.add_argument("--development", action="store_true", help="training cases instead of the validation list")
    parser.add_argument("--rounds", type=int, default=40, help="most slices that are corrected in a case")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "correcting")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "correcting.json")
    options = parser.parse_args()
    table: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}
    table["machine"] = machine_facts()

    def save() -> None:
        beside = options.out.with_suffix(".part")
        beside.write_text(json.dumps(table, indent=1) + "\n")
        os.replace(beside, options.out)

    {"simulate": simulate, "times": times}[options.what](options, table, save)


if __name__ == "__main__":
    main()

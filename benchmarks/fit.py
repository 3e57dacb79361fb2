"""How often another patient of a training set is warned of, and how often a volume of another set is not.

python benchmarks/fit.py DATA [--output FILE]

DATA holds data sets with a dataset.json each. For every set of a shipped model, cards are made of a few random cases of
it; all other cases of the set should fit, and no volume of the other sets should.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import time
from pathlib import Path

from napari_fmseg.core.errors import FmsegError
from napari_fmseg.io import read_volume
from napari_fmseg.models.fit import find_misfits
from napari_fmseg.models.measures import Measures, measure_volume, summarise
from napari_fmseg.models.registry import find_card

SETS = {
    "hn_ct": "headneck-ct",
    "hippocampus": "hippocampus-mr",
    "la_mr": "left-atrium-mr",
    "acdc": "cardiac-mr",
    "lbt_pet": "lesion-pet",
}
PARTS = ("training", "validation", "unlabelled")
ROUNDS = 30
LIKE = {("hippocampus", "brain_dicom")}  # holds crops of a hippocampus, which are right for its model

Scan = tuple[Measures, dict[str, object]]


def scans_of(folder: Path) -> tuple[list[Scan], float]:
    """Measure all volumes of one channel of a data set; return the seconds that measuring took, without reading."""
    facts = json.loads((folder / "dataset.json").read_text())
    entries = [entry for part in PARTS for entry in facts.get(part, ())]
    paths = [
        path for entry in entries for path in ([entry["image"]] if isinstance(entry["image"], str) else entry["image"])
    ]
    found, seconds = [], 0.0
    for path in paths:
        try:
            volume = read_volume(folder / path)
        except FmsegError as error:
            print(f"left out: {error}")
            continue
        start = time.perf_counter()
        found.append((measure_volume(volume), dict(volume.meta)))
        seconds += time.perf_counter() - start
    return found, seconds


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--output", type=Path)
    asked = parser.parse_args()
    measured = {path.parent.name: scans_of(path.parent) for path in sorted(asked.data.glob("*/dataset.json"))}
    n = sum(len(scans) for scans, _ in measured.values())
    each_ms = 1000 * sum(seconds for _, seconds in measured.values()) / n
    print(f"{n} volumes, {each_ms:.1f} ms to measure one")
    draw, rows = random.Random(0), []
    for name, model in SETS.items():
        own = measured[name][0]
        others = [scan for other, (scans, _) in measured.items() if other != name and (name, other) not in LIKE
                  for scan in scans]  # fmt: skip
        for n_cases in (3, 5, 10, 20, 30):
            counts = dict.fromkeys(("own", "warned", "others", "missed"), 0)
            for _ in range(ROUNDS):
                draw.shuffle(own)
                card = dataclasses.replace(find_card(model), training_data=summarise(m for m, _ in own[:n_cases]))
                own_misfits = [find_misfits(measures, meta, card) for measures, meta in own[n_cases:]]
                other_misfits = [find_misfits(measures, meta, card) for measures, meta in others]
                counts["own"] += len(own_misfits)
                counts["warned"] += sum(bool(found) for found in own_misfits)
                counts["others"] += len(other_misfits)
                counts["missed"] += sum(not any(one.grave for one in found) for found in other_misfits)
            rows.append({"set": name, "cases": n_cases, **counts})
            print(f"{name:12} {n_cases:3} cases: {100 * counts['warned'] / counts['own']:.2f} % of its own warned of, "
                  f"{100 * counts['missed'] / counts['others']:.2f} % of the others missed")  # fmt: skip
    if asked.output:
        asked.output.write_text(json.dumps({"rounds": ROUNDS, "ms": round(each_ms, 2), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()

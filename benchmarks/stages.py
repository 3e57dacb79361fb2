"""Every stage of `fmseg segment`, cold and warm.

    python -m benchmarks stages [--models fmsf-phantom-ct efficient-phantom-ct] [--rounds 3] [--image FILE]

One command segments the same volume twice: the first one is *cold* (weights are loaded, networks prepared, libraries
imported), the second one *warm*. The figures are those that the command itself reports for each volume, by the clock.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import measuring

from napari_fmseg.core.processes import environment, python_module
from napari_fmseg.datasets.phantom import phantom_ct
from napari_fmseg.io import suffix_of, write_volume


def run(images: list[Path], model: str, output: Path) -> list[dict[str, float]]:
    """Return seconds by part, of each volume."""
    words = ["segment", *map(str, images), "--model", model, "--output", str(output), "--events"]
    done = subprocess.run(
        python_module("napari_fmseg", *words), capture_output=True, text=True,
        env=environment(), check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"fmseg segment ended with {done.returncode}: {done.stderr[-500:]}")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    return [event["seconds"] for event in events if event["event"] == "Done"]


def measure(model: str, images: list[Path], folder: Path, rounds: int) -> dict[str, Any]:
    """Run the command again and again; return each part cold and warm."""
    runs = []
    for _ in range(rounds):
        runs.append(run(images, model, folder / "masks"))
        shutil.rmtree(folder / "masks")
    return {
        part: {
            state: measuring.summarise([one[number][part] for one in runs])
            for number, state in enumerate(("cold", "warm"))
        }
        for part in runs[0][0]
    }


def main() -> None:
    """Measure one model after the other."""
    parser = measuring.parser_for(__doc__, "stages")
    parser.add_argument("--models", nargs="+", default=["fmsf-phantom-ct", "efficient-phantom-ct"])
    parser.add_argument("--image", type=Path, help="a phantom without one")
    settings = parser.parse_args()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="fmseg-stages-") as place:
        folder = Path(place)
        first = settings.image or write_volume(phantom_ct(1)[0], folder / "first.nii.gz")
        second = folder / f"second{suffix_of(first)}"
        shutil.copy(first, second)
        for model in settings.models:
            found[model] = measure(model, [first, second], folder, settings.rounds)
            for part, states in found[model].items():
                cold, warm = (states[state]["median"] for state in ("cold", "warm"))
                sys.stdout.write(f"{model:24} {part:16} cold {cold:7.3f} s, warm {warm:7.3f} s\n")
            measuring.keep(settings.out, "stages", settings, {"models": found})


if __name__ == "__main__":
    main()

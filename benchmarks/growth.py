"""How time and memory beside the networks grow with the size of the volume and with the number of classes.

    python -m benchmarks growth [--full] [--parts resizing labels components writing] [--rounds 3]

*Resizing* brings the volume to a network's grid, *labels* turns the scores of all classes on that grid into one label
for every voxel of the volume, *components* keeps the largest component of each class, *writing* compresses the labels
into a .nii.gz file. Volume and scores are drawn. Each cell is a process of its own; `base_mb` is what it held before.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measuring
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from napari_fmseg.core.volume import Geometry, LabelMap
from napari_fmseg.io import write_labels
from napari_fmseg.pipelines.label_upsampling import labels_on
from napari_fmseg.pipelines.postprocess import keep_largest_components
from napari_fmseg.pipelines.preprocessing import whole_box
from napari_fmseg.pipelines.slab_reader import SlabReader

SHAPES = ((128, 128, 128), (200, 256, 256))
ALL_SHAPES = (*SHAPES, (200, 512, 512), (500, 512, 512), (1000, 512, 512))
CLASSES = (2, 32)
ALL_CLASSES = (2, 8, 32, 118)
PARTS = ("resizing", "labels", "components", "writing")
GRID = 96

Shape = tuple[int, int, int]


def scores_of(classes: int, grid: int) -> Tensor:
    """Return smooth scores in which the background takes about half of the volume."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(1, classes, 7, 7, 7, generator=generator)
    coarse[0, 0] += 0.8 * (2 * torch.tensor(float(classes)).log()).sqrt()
    return F.interpolate(coarse, [grid] * 3, mode="trilinear")[0].contiguous()


def work_of(part: str, shape: Shape, classes: int, grid: int, folder: Path) -> Callable[[], Any]:
    """Prepare a part; return what is measured."""
    if part == "resizing":
        data = np.random.default_rng(0).integers(-1000, 1000, (1, *shape), np.int16)
        reader = SlabReader(data, torch.device("cpu"))
        return lambda: reader.read(whole_box(shape), (grid,) * 3)
    scores = scores_of(classes, grid)
    if part == "labels":
        return lambda: labels_on(scores, shape)
    labels = LabelMap(labels_on(scores, shape).numpy(), Geometry.from_spacing(shape, (1.0, 1.0, 1.0)))
    if part == "components":
        return lambda: keep_largest_components(labels, (1,) * (classes - 1))
    return lambda: write_labels(labels, folder / "labels.nii.gz")


def serve(part: str, shape: Shape, classes: int, grid: int) -> None:
    """Be one cell."""
    with tempfile.TemporaryDirectory(prefix="fmseg-growth-") as folder:
        work = work_of(part, shape, classes, grid, Path(folder))

        def run() -> None:
            with torch.inference_mode():
                work()

        measuring.serve(run, lambda out, path: None)


def measure(part: str, shape: Shape, classes: int, settings: argparse.Namespace) -> dict[str, Any]:
    """Run one cell."""
    words = ["--serve", part, "--shape", *map(str, shape), "--classes", str(classes), "--grid", str(settings.grid)]
    form = measuring.Form(part, [__file__, *words], {"OMP_NUM_THREADS": str(settings.threads)})
    measuring.take_turns([form], settings.rounds)
    form.end()
    return {"part": part, "shape": list(shape), "classes": classes, **form.row()}


def main() -> None:
    """Measure cell by cell, the small ones first; write after each."""
    parser = measuring.parser_for(__doc__, "growth")
    parser.add_argument("--full", action="store_true", help="up to 512 x 512 x 1000 voxels and 118 classes")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--shape", type=int, nargs=3, help="one shape alone")
    parser.add_argument("--classes", type=int, help="one number of classes alone, with the background")
    parser.add_argument("--grid", type=int, default=GRID, help="voxels of the network along each axis")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    settings = parser.parse_args()
    if settings.serve:
        z, y, x = settings.shape
        serve(settings.serve, (z, y, x), settings.classes, settings.grid)
        return
    shapes = [tuple(settings.shape)] if settings.shape else ALL_SHAPES if settings.full else SHAPES
    counts = [settings.classes] if settings.classes else ALL_CLASSES if settings.full else CLASSES
    rows: list[dict[str, Any]] = []
    for shape in shapes:
        for part in settings.parts:
            for classes in counts if part != "resizing" else counts[:1]:
                row = measure(part, shape, classes, settings)
                rows.append(row)
                sys.stdout.write(
                    f"{' x '.join(map(str, shape)):18} {classes:4} classes  {part:11} processor "
                    f"{row['processor_seconds']['least']:7.3f} s  {row['peak_mb'] - row['base_mb']:6} MB more\n"
                )
                sys.stdout.flush()
                measuring.keep(settings.out, "growth", settings, {"cells": rows})


if __name__ == "__main__":
    main()

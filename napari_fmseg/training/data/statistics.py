"""What a recipe is planned from: sizes, values and structures of some cases of a dataset."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from napari_fmseg.core.resampling_torch import to_canonical
from napari_fmseg.datasets.case import Case, read_case
from napari_fmseg.pipelines.postprocess import clean

__all__ = ["DatasetStatistics", "facts_of"]

_LOOK_AT = 12
"""Cases that are read to know the data; the others are like them."""

_ONE_PIECE = 0.95, 0.9
"""Share of a structure in its largest connected component, on average and at least, from which the rest is an error."""


@dataclass(frozen=True)
class DatasetStatistics:
    """Statistics of a dataset.

    Attributes
    ----------
    shape, spacing
        Medians (z, y, x) in voxels and mm, canonical.
    modality
        As the files say, or "".
    is_hounsfield
        Whether the intensities are those of a CT.
    window
        2 and 98 percentile of the intensities inside the structures.
    sparse
        Whether some voxels are not labelled.
    share
        Share of the volume that each class fills, by name, where it is there.
    channels
        Of a case.
    in_one_piece
        Whether every structure is one connected component, but for little.
    seconds_per_case
        What reading one took.
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    modality: str = ""
    is_hounsfield: bool = False
    window: tuple[float, float] = (0.0, 1.0)
    sparse: bool = False
    share: Mapping[str, float] = field(default_factory=dict)
    channels: int = 1
    in_one_piece: bool = False
    seconds_per_case: float = 0.0


def facts_of(cases: Sequence[Case], names: Mapping[int, str], labels: Sequence[str]) -> DatasetStatistics:
    """Read some of the cases and return their statistics."""
    picked = [cases[i] for i in np.linspace(0, len(cases) - 1, min(len(cases), _LOOK_AT)).round().astype(int)]
    shapes, spacings, inside, lows, sparse = [], [], [], [], False
    shares: dict[str, list[float]] = {label: [] for label in labels}
    largest: dict[str, list[float]] = {label: [] for label in labels}
    modality, channels, start = "", 1, time.perf_counter()
    for case in picked:
        volume, truth = read_case(case, names, labels)
        data, grid = to_canonical(volume)
        modality, channels = str(volume.meta.get("modality", "")) or modality, len(data)
        marks = truth.data
        shapes.append(grid.shape)
        spacings.append(grid.spacing)
        lows.append(float(data[0].min()))
        structure = np.asarray(volume.channels[0])[(marks > 0) & (marks < 255)]
        inside.append(structure[:: max(1, structure.size // 20_000)])
        sparse |= bool((marks == 255).any())
        for i, label in enumerate(labels, 1):
            count = int((marks == i).sum())
            shares[label] += [count / max(1, int((marks != 255).sum()))] if count else []
        known = dataclasses.replace(truth, data=np.where(marks == 255, 0, marks), names={})
        kept = clean(known, keep_largest=True, neighbours=6).data
        for i, label in enumerate(labels, 1):
            if (count := int((marks == i).sum())) > 0:
                largest[label].append(int((kept == i).sum()) / count)
    values = np.concatenate(inside) if any(len(i) for i in inside) else np.zeros(1)
    low, high = (float(v) for v in np.percentile(values, [2, 98]))
    z, y, x = (int(n) for n in np.median(shapes, 0))
    dz, dy, dx = (float(s) for s in np.median(spacings, 0))
    return DatasetStatistics(
        (z, y, x), (dz, dy, dx), modality, modality == "CT" or float(np.median(lows)) < -500, (low, high), sparse,
        {label: float(np.mean(s)) for label, s in shares.items() if s}, channels,
        all(np.mean(s) >= _ONE_PIECE[0] and min(s) >= _ONE_PIECE[1] for s in largest.values() if s),
        (time.perf_counter() - start) / max(1, len(picked)),
    )  # fmt: skip

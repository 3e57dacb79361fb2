"""How long reading and writing take: ours, nibabel and SimpleITK in one paired run.

``python benchmarks/reading.py [--rounds 9] [--out benchmarks/results/reading.json]``

The volume is like a chest CT: 512 x 512 x 200 voxels in int16 with noise, and labels of seven organs. All tools take
turns in every round, so that a busy neighbour disturbs them alike; medians of the wall time and minima of the processor
time are kept, and the load: above the number of cores only the processor time says anything. What is read lies in
the page cache: this compares programs, not disks.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import SimpleITK as sitk

from napari_fmseg.core.volume import Geometry, LabelMap
from napari_fmseg.evaluation.machine import machine_facts
from napari_fmseg.io import read_labels, read_volume, write_labels

SHAPE = (200, 512, 512)
SPACING = (2.0, 0.8, 0.8)
SERIES = "1.2.826.0.1.3680043.10.1"


def chest() -> tuple[np.ndarray, np.ndarray]:
    """Return a noisy body (z, y, x) in HU, int16, and its organs, uint8."""
    rng = np.random.default_rng(0)
    z, y, x = np.ogrid[-1 : 1 : SHAPE[0] * 1j, -1 : 1 : SHAPE[1] * 1j, -1 : 1 : SHAPE[2] * 1j]
    body = (y / 0.7) ** 2 + (x / 0.85) ** 2 + 0 * z < 1
    image = np.where(body, np.float32(40), np.float32(-1000))
    labels = np.zeros(SHAPE, np.uint8)
    for number in range(1, 8):
        center, radius = rng.uniform(-0.4, 0.4, 3), rng.uniform(0.1, 0.3, 3)
        organ = sum(((axis - c) / r) ** 2 for axis, c, r in zip((z, y, x), center, radius, strict=True)) < 1
        labels[organ] = number
        image[organ] = rng.uniform(-800, 300)
    image += rng.standard_normal(SHAPE, np.float32) * np.where(body, np.float32(12), np.float32(4))
    return np.rint(image).astype(np.int16), labels


def write_series(folder: Path, image: np.ndarray) -> None:
    """Write the image as uncompressed CT slices."""
    folder.mkdir()
    for i, plane in enumerate(image):
        meta = pydicom.dataset.FileMetaDataset()
        meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
        meta.MediaStorageSOPInstanceUID = f"{SERIES}.{i + 1}"
        meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        part = pydicom.Dataset()
        part.file_meta = meta
        part.SOPClassUID, part.SOPInstanceUID = pydicom.uid.CTImageStorage, f"{SERIES}.{i + 1}"
        part.SeriesInstanceUID, part.StudyInstanceUID, part.Modality = SERIES, SERIES + ".0", "CT"
        part.Rows, part.Columns, part.PixelSpacing = *plane.shape, list(SPACING[1:])
        part.ImageOrientationPatient, part.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, SPACING[0] * i]
        part.SamplesPerPixel, part.PhotometricInterpretation, part.PixelRepresentation = 1, "MONOCHROME2", 0
        part.BitsAllocated, part.BitsStored, part.HighBit = 16, 16, 15
        part.RescaleSlope, part.RescaleIntercept, part.InstanceNumber = 1, -1024, i + 1
        part.PixelData = np.maximum(plane + 1024, 0).astype("<u2").tobytes()
        part.save_as(folder / f"{i:04d}.dcm", enforce_file_format=True)


def tasks(folder: Path) -> dict[str, dict[str, Callable[[], Any]]]:
    """Return what is timed: for each task, what each tool does."""
    image, organs = chest()
    grid = Geometry.from_spacing(SHAPE, SPACING)
    labels = LabelMap(organs, grid, names={i: f"organ {i}" for i in range(1, 8)})
    affine = np.diag([-0.8, -0.8, 2.0, 1.0])
    ct, lab, series, out = folder / "ct.nii.gz", folder / "labels.nii.gz", folder / "series", folder / "out.nii.gz"
    nib.save(nib.Nifti1Image(image.T, affine), ct)
    nib.save(nib.Nifti1Image(organs.T, affine), lab)
    write_series(series, image)
    itk_labels = sitk.GetImageFromArray(organs)
    itk_labels.SetSpacing(SPACING[::-1])
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames

    def by_itk(path: Any) -> np.ndarray:
        return sitk.GetArrayFromImage(sitk.ReadImage(path))

    return {
        "read CT .nii.gz": {
            "ours": lambda: read_volume(ct),
            "nibabel": lambda: np.asanyarray(nib.load(ct).dataobj),
            "SimpleITK": lambda: by_itk(str(ct)),
        },
        "read labels .nii.gz": {
            "ours": lambda: read_labels(lab),
            "nibabel": lambda: np.asanyarray(nib.load(lab).dataobj),
            "SimpleITK": lambda: by_itk(str(lab)),
        },
        "write labels .nii.gz": {
            "ours": lambda: write_labels(labels, out),
            "nibabel": lambda: nib.save(nib.Nifti1Image(organs.T, affine), out),
            "SimpleITK": lambda: sitk.WriteImage(itk_labels, str(out), True),
        },
        "write labels .nrrd": {
            "ours": lambda: write_labels(labels, folder / "out.nrrd"),
            "SimpleITK": lambda: sitk.WriteImage(itk_labels, str(folder / "out.nrrd"), True),
        },
        "read DICOM, 200 slices": {
            "ours": lambda: read_volume(series),
            "SimpleITK": lambda: by_itk(names(str(series))),
        },
    }


def measure(task: dict[str, Callable[[], Any]], rounds: int) -> dict[str, Any]:
    """Time all tools in turn; one round before does not count."""
    wall: dict[str, list[float]] = {tool: [] for tool in task}
    cpu: dict[str, list[float]] = {tool: [] for tool in task}
    for number in range(rounds + 1):
        for tool, work in task.items():
            start, start_cpu = time.perf_counter(), time.process_time()
            result = work()
            if number:
                wall[tool].append(time.perf_counter() - start)
                cpu[tool].append(time.process_time() - start_cpu)
            del result
    medians = {tool: statistics.median(seconds) for tool, seconds in wall.items()}
    return {
        "median_ms": {tool: round(1000 * seconds, 1) for tool, seconds in medians.items()},
        "least_cpu_ms": {tool: round(1000 * min(seconds), 1) for tool, seconds in cpu.items()},
        "times_faster_than": {
            tool: round(statistics.median(a / b for a, b in zip(wall[tool], wall["ours"], strict=True)), 2)
            for tool in task
            if tool != "ours"
        },
    }


def main() -> None:
    """Run all tasks and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "reading.json")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = {}
        for name, task in tasks(Path(folder)).items():
            results[name] = measure(task, args.rounds)
            print(name, results[name])
        sizes = {path.name: path.stat().st_size for path in sorted(Path(folder).glob("*.*"))}
    facts = {
        "machine": machine_facts(packages=("nibabel", "pydicom", "isal")),
        "volume": {"shape_zyx": SHAPE, "dtype": "int16", "bytes": int(np.prod(SHAPE)) * 2},
        "file_bytes": sizes,
        "rounds": args.rounds,
        "results": results,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()

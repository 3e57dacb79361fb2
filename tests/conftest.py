"""What several rooms are tested with: a synthetic DICOM PET."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.uid import ExplicitVRLittleEndian, PositronEmissionTomographyImageStorage

import napari_fmseg  # noqa: F401 - before torch, so that FMSEG_CPU_CAPABILITY holds for the tests themselves

DOSE, HALF_LIFE, WEIGHT = 350e6, 6586.2, 72.5
N, SHAPE = 3, (5, 6)
STORED = np.random.default_rng(3).integers(0, 20000, (N, *SHAPE)).astype(np.int16)
SLOPES = np.array([0.5, 1.25, 2.0])  # as GE writes them: another one for every slice


def write_pet(folder: Path, change: Callable[[int, Any, Any], Any] | None = None, **tags: Any) -> Path:
    """Write a PET of three slices, injected at 10:00, scanned at 11:00; `change(i, slice, pharma)` spoils one."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(N):
        meta = pydicom.dataset.FileMetaDataset()
        meta.MediaStorageSOPClassUID = PositronEmissionTomographyImageStorage
        meta.MediaStorageSOPInstanceUID = f"1.2.3.{i + 1}"
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        s = pydicom.Dataset()
        s.file_meta = meta
        s.SOPClassUID, s.SOPInstanceUID = PositronEmissionTomographyImageStorage, f"1.2.3.{i + 1}"
        s.SeriesInstanceUID, s.Modality, s.SeriesDescription = "1.2.3", "PT", "WB"
        s.PatientName, s.PatientID, s.PatientWeight = "Doe^Jane", "4711", str(WEIGHT)
        s.Rows, s.Columns, s.PixelSpacing = *SHAPE, [4, 4]
        s.ImageOrientationPatient, s.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 4.0 * i]
        s.SamplesPerPixel, s.PhotometricInterpretation = 1, "MONOCHROME2"
        s.BitsAllocated, s.BitsStored, s.HighBit, s.PixelRepresentation = 16, 16, 15, 1
        s.RescaleSlope, s.RescaleIntercept, s.InstanceNumber = SLOPES[i], 0, i + 1
        s.Units, s.DecayCorrection, s.CorrectedImage = "BQML", "START", ["DECY", "ATTN", "SCAT"]
        s.SeriesDate, s.SeriesTime = "20240229", "110000.00"
        s.AcquisitionDate, s.AcquisitionTime = "20240229", f"11{2 * i:02d}00.000000"
        s.ActualFrameDuration, s.WindowCenter, s.WindowWidth = "120000", 1000, 2000
        pharma = pydicom.Dataset()
        pharma.RadiopharmaceuticalStartTime = "100000"
        pharma.RadionuclideTotalDose, pharma.RadionuclideHalfLife = str(DOSE), str(HALF_LIFE)
        s.RadiopharmaceuticalInformationSequence = [pharma]
        s.PixelData = STORED[i].astype("<i2").tobytes()
        for key, value in tags.items():
            setattr(s, key, value)
        if change is not None:
            change(i, s, pharma)
        s.save_as(folder / f"IM{i}", enforce_file_format=True)
    return folder


@pytest.fixture
def pet() -> Callable[..., Path]:
    """Give the function that writes a PET series."""
    return write_pet

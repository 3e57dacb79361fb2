"""Standardised uptake values (SUV) of PET: dose, weight and time of a DICOM series, as one factor per slice.

By body weight: SUV = activity (Bq/ml) x weight (g) / dose (Bq), the dose decayed to the time that the activities are
corrected to. The rules are the vendor-neutral ones of QIBA; tissue is taken as 1 g/ml.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from napari_fmseg.core.errors import NoSuv
from napari_fmseg.io.dicom.plane_info import number

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = ["UNITS", "suv_factors"]

UNITS = {"BQML": "Bq/ml", "CNTS": "counts", "GML": "g/ml", "CM2ML": "cm²/ml"}
"""Words for the units of a PET (0054,1001)."""

_TAGS = {
    "Units": "0054,1001", "PatientWeight": "0010,1030", "CorrectedImage": "0028,0051", "DecayCorrection": "0054,1102",
    "RadionuclideTotalDose": "0018,1074", "RadionuclideHalfLife": "0018,1075",
    "RadiopharmaceuticalStartTime": "0018,1072", "SeriesTime": "0008,0031", "AcquisitionTime": "0008,0032",
    "ActualFrameDuration": "0018,1242",
}  # fmt: skip
_LEAST_DOSE = 1e4
"""Bq. A dose below is none that makes an image, but one in MBq."""
_PHILIPS, _GE = (0x7053, "PHILIPS PET PRIVATE GROUP"), (0x0009, "GEMS_PETD_01")
"""Group and creator of private tags; the creator reserves a block of the group, not always the first."""
_PHILIPS_SUV, _PHILIPS_BQML, _GE_SCAN = 0x00, 0x09, 0x0D
_DAY = timedelta(days=1)
_ANY_DAY = "20000101"  # where dates were taken out: only differences count


@dataclass
class _Facts:
    """What the headers say, and the names of the tags that say nothing."""

    missing: list[str] = field(default_factory=list)

    def need(self, name: str, value: Any) -> Any:
        """Record a tag that is missing, empty or zero."""
        if not value and name not in self.missing:
            self.missing.append(name)
        return value

    def check(self) -> None:
        """Raise one error that names everything that is missing."""
        if self.missing:
            told = ", ".join(f"{name} ({_TAGS[name]})" for name in self.missing)
            raise NoSuv(
                f"SUV cannot be computed: the series lacks {told}, or it is empty or zero. "
                "Export the series again without taking these out, or go on without SUV."
            )


def suv_factors(slices: Sequence[Dataset]) -> list[float]:
    """Return what the rescaled values of each slice are multiplied by to become SUV by body weight.

    Parameters
    ----------
    slices
        Headers of all slices of one PET series, one for each slice; the first with its private tags, and all of them
        if they are counts.

    Returns
    -------
    list of float
        One per slice. They differ only where the activities were not corrected for decay.

    Raises
    ------
    NoSuv
        If a tag is missing, empty or zero (all of them are named), if the image was not corrected for attenuation, or
        if its values are no activities. Nothing of the patient is stated.

    Notes
    -----
    Units BQML by dose, weight and time. CNTS only by the factors that Philips adds, (7053,1000) to SUV or (7053,1009)
    to Bq/ml. GML is SUV already, unless SUVType says that it is not by body weight.

    DecayCorrection START: the dose is decayed from the injection to the start of the scan, which is the series' time,
    or, for a series that was made later, the time that GE adds, or the first acquisition. ADMIN: the activities are
    those at the injection, and so is the dose. NONE: the dose is decayed to each slice's acquisition, and to the mean
    over its duration. A time of injection later than the scan is of the day before.

    References
    ----------
    RSNA QIBA, Standardized Uptake Value, vendor-neutral pseudo-code; Kinahan and Fletcher, Positron emission
    tomography-computed tomography standardized uptake values in clinical practice, Semin Ultrasound CT MR 2010.
    """
    first = slices[0]
    units = str(first.get("Units") or "").upper()
    if any(str(other.get("Units") or "").upper() != units for other in slices):
        raise NoSuv("SUV cannot be computed: the slices are in different units (0054,1001). Export the series again.")
    if units == "GML":
        return [_factor_of_suv_type(first)] * len(slices)
    if units not in ("", "BQML", "CNTS"):
        raise NoSuv(
            f"SUV cannot be computed from values in {units}. Expected Bq/ml (BQML), g/ml (GML) or Philips's counts "
            "(CNTS). Export the series that was reconstructed as activity."
        )
    scales = [1.0] * len(slices)
    if units == "CNTS":
        ready, scales = ([_factor(each, of) for each in slices] for of in (_PHILIPS_SUV, _PHILIPS_BQML))
        if all(ready):
            return ready
        if not all(scales):
            raise NoSuv(
                "SUV cannot be computed: the values are counts (CNTS), and the private factors (7053,1000) and "
                "(7053,1009) of Philips that make them SUV or Bq/ml are missing, or their creator (7053,0010) is. "
                "Export the series with its private tags."
            )
    facts = _Facts()
    facts.need("Units", units)
    weight = facts.need("PatientWeight", number(first.get("PatientWeight")))
    corrected = facts.need("CorrectedImage", first.get("CorrectedImage"))
    if corrected and "ATTN" not in ([corrected] if isinstance(corrected, str) else corrected):
        raise NoSuv(
            "SUV cannot be computed: the image was not corrected for attenuation (CorrectedImage lacks ATTN). "
            "Choose the series that was."
        )
    doses = _dose_at_scan(slices, facts)
    return [scale * weight * 1000 / dose for scale, dose in zip(scales, doses, strict=True)]


def _factor_of_suv_type(header: Dataset) -> float:
    kind = str(header.get("SUVType") or "BW").upper()
    if kind != "BW":
        raise NoSuv(
            f"The values are SUV already, but by {kind} (SUVType) and not by body weight. They were left as they are."
        )
    return 1.0


def _factor(header: Dataset, element: int) -> float:
    """Return the private factor of Philips, 0 where it is missing or none."""
    return max(0.0, number(_private(header, _PHILIPS, element)))


def _private(header: Dataset, owner: tuple[int, str], element: int) -> Any:
    """Return the value of a private tag in the block that its creator reserved; None where it is missing."""
    group, creator = owner
    for tag in list(header.keys()):
        if tag.group == group and 0x10 <= tag.element <= 0xFF and _text(header[tag].value).upper() == creator:
            found = header.get((group, tag.element << 8 | element))
            if found is not None:
                return found.value
    return None


def _text(value: Any) -> str:
    """Return the text of a private tag, which is bytes where its type is unknown."""
    return (value.decode("latin-1") if isinstance(value, bytes) else str(value or "")).strip("\0 ")


def _dose_at_scan(slices: Sequence[Dataset], facts: _Facts) -> list[float]:
    """Return the dose in Bq at the time that the activities of each slice are those of."""
    first = slices[0]
    pharma = (first.get("RadiopharmaceuticalInformationSequence") or [{}])[0]
    dose = facts.need("RadionuclideTotalDose", number(pharma.get("RadionuclideTotalDose")))
    way = facts.need("DecayCorrection", str(first.get("DecayCorrection") or "").upper())
    if dose and 0 < dose < _LEAST_DOSE:
        raise NoSuv(
            "SUV cannot be computed: RadionuclideTotalDose (0018,1074) is too small for Bq. It was probably written in "
            "MBq, against the standard; have it corrected."
        )
    if way == "ADMIN":
        facts.check()
        return [dose] * len(slices)
    half_life = facts.need("RadionuclideHalfLife", number(pharma.get("RadionuclideHalfLife")))
    start = facts.need("RadiopharmaceuticalStartTime", _injection_time(pharma))
    times = [_when(h, "Acquisition") for h in slices]
    facts.need("AcquisitionTime", all(times))
    if way == "NONE":
        lasted = [number(h.get("ActualFrameDuration")) / 1000 for h in slices]
        facts.need("ActualFrameDuration", min(lasted) > 0)
        facts.check()
        gaps = [_seconds(start, time, half_life) for time in times if time]
        rate = math.log(2) / half_life
        means = [-math.expm1(-rate * t) / (rate * t) for t in lasted]  # of the activity during a frame, to its start
        return [dose * 2 ** (-gap / half_life) * mean for gap, mean in zip(gaps, means, strict=True)]
    series = facts.need("SeriesTime", _when(first, "Series"))
    facts.check()
    if way != "START":
        raise NoSuv(f"SUV cannot be computed: DecayCorrection is {way}; expected START, ADMIN or NONE.")
    scan = _scan_time(first, series, [time for time in times if time])
    return [dose * 2 ** (-_seconds(start, scan, half_life) / half_life)] * len(slices)


def _scan_time(header: Dataset, series: datetime, acquired: list[datetime]) -> datetime:
    """Return when the scan began: a series that was calculated later has a time of its own."""
    earliest = min(acquired)
    if not header.get("AcquisitionDate") and series - earliest > _DAY / 2:
        earliest += _DAY  # the series began before midnight
    if series <= earliest:
        return series
    return _parse_time(_text(_private(header, _GE, _GE_SCAN))) or earliest


def _seconds(start: datetime, scan: datetime, half_life: float) -> float:
    """Return seconds from the injection to the scan; by the clock alone where the dates make no sense."""
    gap = (scan - start).total_seconds()
    if 0 <= gap <= 10 * half_life and start.year > 1:
        return gap
    return gap % _DAY.total_seconds()


def _injection_time(pharma: Any) -> datetime | None:
    """Return when the tracer was injected; of the year 1 where only the time of the day is known."""
    known = _parse_time(str(pharma.get("RadiopharmaceuticalStartDateTime") or ""))
    if known is not None:
        return known
    time = str(pharma.get("RadiopharmaceuticalStartTime") or "")
    return _parse_time(f"00010101{time.replace(':', '')}") if time else None


def _when(header: Dataset, which: str) -> datetime | None:
    """Return the date and time of the series or of the acquisition; any day where the date was taken out."""
    date, time = (str(header.get(f"{which}{part}") or "") for part in ("Date", "Time"))
    date = date or str(header.get("SeriesDate") or "") or _ANY_DAY
    return _parse_time(date.replace(".", "") + time.replace(":", "")) if time else None


def _parse_time(text: str) -> datetime | None:
    """Read ``YYYYMMDDHHMMSS.ffffff``, of which minutes and less may be missing; None if it is nothing of the kind."""
    plain = text.strip().partition("+")[0].partition("-")[0]
    whole, _, fraction = plain.partition(".")
    if not whole.isdigit() or len(whole) < 10:
        return None
    try:
        found = datetime.strptime(whole[:14].ljust(14, "0"), "%Y%m%d%H%M%S")
    except ValueError:
        return None
    return found + timedelta(seconds=float(f"0.{fraction}")) if fraction.isdigit() else found

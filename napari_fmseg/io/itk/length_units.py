"""Lengths in the unit that a header states, turned into millimetres."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["mm_per_unit"]

_MM = {"m": 1000.0, "dm": 100.0, "cm": 10.0, "mm": 1.0, "um": 0.001, "nm": 1e-6, "in": 25.4}
_WORDS = {
    **{f"{prefix}{word}": unit for prefix, unit in (("", "m"), ("deci", "dm"), ("centi", "cm"), ("milli", "mm"),
                                                    ("micro", "um"), ("nano", "nm")) for word in ("meter", "metre")},
    "micron": "um", "µm": "um", "μm": "um", "mum": "um", "inch": "in", "inche": "in",
}  # fmt: skip
_UNSTATED = ("", "?", "???", "none", "unknown")


def mm_per_unit(units: Sequence[str], n_axes: int = 3) -> tuple[tuple[float, ...], list[str]]:
    """Return how many millimetres the unit of each axis has, and what the user should know.

    Parameters
    ----------
    units
        As the header has them, one per axis; one that is missing or empty is a millimetre.
    n_axes
        How many there should be.
    """
    stated = [unit.strip() for unit in units][:n_axes]
    factors: list[float] = []
    warnings: list[str] = []
    for unit in [*stated, *[""] * (n_axes - len(stated))]:
        factor = 1.0 if unit.lower() in _UNSTATED else _factor(unit)
        factors.append(factor or 1.0)
        if factor is None:
            warnings.append(f"The header gives lengths in {unit[:20]!r}, unknown here; millimetres were assumed.")
        elif factor != 1:
            warnings.append(f"The header gives lengths in {unit}; they were turned into millimetres.")
    return tuple(factors), list(dict.fromkeys(warnings))


def _factor(unit: str) -> float | None:
    word = unit if unit in _MM else unit.lower().removesuffix("s")
    return _MM.get(_WORDS.get(word, word))

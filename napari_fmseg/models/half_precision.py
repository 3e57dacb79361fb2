"""Half precision on a model's card: the measured agreement of its masks with those in float32."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from napari_fmseg.core.errors import UnknownModel

__all__ = ["LEAST_DICE", "HalfPrecision"]

LEAST_DICE = 0.999
"""Dice against float32, of every class and case, from which the masks count as the same."""


@dataclass(frozen=True)
class HalfPrecision:
    """How near a model's masks in bfloat16 come to those in float32, on cases that it did not learn from.

    Parameters
    ----------
    dice_vs_float32
        Dice between the two masks by class, the lowest of all cases. Every class of the model is there.
    n_cases
        How many cases were segmented both ways.
    sha256
        Hash of the weights that were measured; of other weights it says nothing.
    cases, device
        Which cases, and on what they were segmented.
    """

    dice_vs_float32: Mapping[str, float]
    n_cases: int
    sha256: str
    cases: str = ""
    device: str = ""

    def __post_init__(self) -> None:
        wrong = [f"{name} = {dice!r}" for name, dice in self.dice_vs_float32.items() if not 0 <= dice <= 1]
        if wrong or not self.dice_vs_float32 or self.n_cases < 1 or len(self.sha256) != 64:
            raise UnknownModel(
                "half_precision needs a Dice from 0 to 1 for every class, at least one case and the sha256 of the "
                f"weights (64 digits), not {', '.join(wrong) or dict(self.dice_vs_float32)}, {self.n_cases} cases and "
                f"{self.sha256!r}"
            )

    @property
    def is_right(self) -> bool:
        """Whether the masks are the same for all that one can see."""
        return min(self.dice_vs_float32.values()) >= LEAST_DICE

    def __str__(self) -> str:
        name, least = min(self.dice_vs_float32.items(), key=lambda item: item[1])
        where = f" on {self.device}" if self.device else ""
        verdict = "taken where the processor computes in it" if self.is_right else "taken only when asked for"
        return (
            f"bfloat16 against float32: lowest Dice {least:.4f} ({name}), {self.n_cases} cases"
            f"{f' ({self.cases})' if self.cases else ''}{where}; {verdict}"
        )

"""Whether a volume is like those that a model was trained on: what differs, in plain sentences, and which models fit.

The limits are wide: a volume is objected to where it lies clearly outside of all training volumes, not where it is
unusual.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from napari_fmseg.core.volume import NO_SPACING
from napari_fmseg.models.card import ModelCard
from napari_fmseg.models.measures import Measures, TrainingData, Values

__all__ = ["Fit", "Misfit", "find_misfits", "modality_of", "rank"]

_COARSER, _MUCH_COARSER, _FINER = 1.6, 2.0, 2.0  # times the spacing
_LARGER = 1.5  # times the box around the body, along any side
_SMALLER, _MUCH_SMALLER = 1.8, 3.2  # times, along two sides or along a single one: a head need not come with shoulders
_SECTION = 1.3  # times its cross-section
_RIM = 0.3  # beyond
_FEW = 1.5  # over the number of cases: what is added to all of these, since few cases do not show how bodies vary
_VALUES = 0.5  # of the span of the training values, beyond them
_ABSOLUTE = ("window", "window_zscore", "fixed_zscore", "none")
_OTHER_IMAGES = ("channels", "phantom", "modality", "values")
"""Kinds of misfits that no cropping or resampling mends."""
_REGIONS = {
    **dict.fromkeys(("head", "brain", "skull", "face", "orbit", "hippocamp"), 0),
    **dict.fromkeys(("neck", "cspine", "thyroid", "larynx"), 1),
    **dict.fromkeys(("chest", "thora", "lung", "heart", "cardiac", "breast"), 2),
    **dict.fromkeys(("abd", "liver", "kidney", "spleen", "pancreas", "lspine"), 3),
    **dict.fromkeys(("pelvi", "prostate", "bladder", "uter", "rectum"), 4),
    **dict.fromkeys(("knee", "leg", "foot", "ankle", "extremity"), 6),
}
"""Parts of the body from top to bottom; neighbours are often mistaken for each other in a header, others are not."""


@dataclass(frozen=True)
class Misfit:
    """How a volume differs from those that a model was trained on.

    Attributes
    ----------
    kind
        ``"channels"``, ``"phantom"``, ``"modality"``, ``"unit"``, ``"values"``, ``"region"`` or ``"spacing"``.
    text
        What was found, what the model was trained on, and what to do.
    grave
        Whether the model is not for such a volume; else its result is likely to be worse.
    """

    kind: str
    text: str
    grave: bool = True


@dataclass(frozen=True)
class Fit:
    """A model, and what speaks against it for a volume."""

    card: ModelCard
    misfits: tuple[Misfit, ...]

    @property
    def is_usable(self) -> bool:
        """Whether nothing grave speaks against it."""
        return not any(misfit.grave for misfit in self.misfits)


def find_misfits(measures: Measures, meta: Mapping[str, Any], card: ModelCard) -> tuple[Misfit, ...]:
    """Find how a volume differs from those that a model was trained on; the gravest first, one of a kind.

    Parameters
    ----------
    measures
        Of the volume; see `napari_fmseg.models.measures.measure`.
    meta
        What its file states.
    card
        Of the model. What it does not say of its training is not compared.
    """
    found: dict[str, Misfit] = {}
    for misfit in _misfits(measures, meta, card):
        found.setdefault(misfit.kind, misfit)
    return tuple(sorted(found.values(), key=lambda misfit: not misfit.grave))


def rank(fits: Iterable[Fit]) -> tuple[Fit, ...]:
    """Order models by how well they fit, the best first; among equals the one with the higher Dice."""
    return tuple(sorted(fits, key=_rank))


def _rank(fit: Fit) -> tuple[Any, ...]:
    dice = fit.card.mean_dice
    unmeasured = dice is None or math.isnan(dice)
    against = sum(1 + misfit.grave + 2 * (misfit.kind in _OTHER_IMAGES) for misfit in fit.misfits)
    return not fit.is_usable, against, unmeasured, 0.0 if unmeasured else -float(dice or 0), fit.card.name


def modality_of(meta: Mapping[str, Any]) -> str:
    """Return the modality that the file of a volume states, in the words of the cards; "" if it states none."""
    modality = str(meta.get("modality") or "")
    return {"PT": "PET", "MRI": "MR"}.get(modality, modality)


def _misfits(measures: Measures, meta: Mapping[str, Any], card: ModelCard) -> Iterator[Misfit]:
    data = card.training_data
    have, want = len(measures.channels), len(card.channels)
    if have != want:
        channels = f"{have} channel{'s' * (have != 1)}"
        yield Misfit(
            "channels",
            f"The volume has {channels}; {card.name} was trained on {want} "
            f"({', '.join(card.channels)}). Give it exactly those.",
        )
    if data is not None and data.is_of_phantoms and not measures.is_phantom:
        yield Misfit(
            "phantom",
            f"Nothing says that the volume is a phantom; {card.name} was trained on phantoms "
            "alone. On a patient its result means nothing: choose another model.",
        )
    values = list(_wrong_values(measures, meta, card))
    yield from values
    if any(misfit.kind in ("modality", "values") for misfit in values):
        return  # where such a volume lies, and how much it shows, does not matter any more
    if data is not None and have == want:
        yield from _wrong_region(measures, meta, card, data)
    if not meta.get(NO_SPACING):
        yield from _wrong_spacing(measures, card)


# --- values


def _wrong_values(measures: Measures, meta: Mapping[str, Any], card: ModelCard) -> Iterator[Misfit]:
    """Yield a wrong modality, else a wrong unit, else values of another scale."""
    modality = modality_of(meta)
    if modality and card.modality and modality != card.modality:
        yield Misfit(
            "modality",
            f"The volume is {modality}; {card.name} was trained on {card.modality}. Do not trust the result: choose a "
            f"model for {modality}.",
        )
        return
    units = [Misfit("unit", text) for text in _wrong_units(meta, card)]
    yield from units
    if units or len(measures.channels) != len(card.channels):
        return
    for number, values in enumerate(measures.channels):
        whose = "volume" if len(card.channels) == 1 else f"channel {card.channels[number]}"
        expected = _expects_hu(card, number)
        if values.is_hu and expected is False and modality != card.modality:
            yield Misfit(
                "modality",
                f"The {whose} has values from {_number(values.minimum)} to {_number(values.maximum)}, as a CT in HU "
                f"has; {card.name} was trained on {card.modality or 'other values'}. Do not trust the result: "
                "choose a model for CT.",
            )
        elif expected and not values.is_hu and meta.get("units") != "HU":
            yield Misfit(
                "values",
                f"The {whose} has values from {_number(values.minimum)} to {_number(values.maximum)}, which are not "
                f"HU with air at about -1000; {card.name} was trained on {card.modality or 'CT'} in HU. Do "
                "not trust the result: choose a model for this kind of image, or bring a CT to HU.",
            )
        elif expected is False and (text := _other_scale(values, card, number, whose)):
            yield Misfit("values", text)


def _wrong_units(meta: Mapping[str, Any], card: ModelCard) -> Iterator[str]:
    """Yield where intensities are counted in another unit than the model's windows."""
    units = meta.get("channel_units") or [meta.get("units", "")] * len(card.channels)
    for number, (have, name) in enumerate(zip(units, card.channels, strict=False)):
        want = card.intensity.of_channel(number).unit
        if want and (have or want == "SUV") and have != want:
            whose = f"The channel {name}" if len(card.channels) > 1 else "The volume"
            is_in = f"is in {have}" if have else "does not say its unit"
            advice = f": bring its values to {want} first" if have else f" unless its values are {want}"
            yield f"{whose} {is_in}; {card.name} was trained on {want}. Do not trust the result{advice}."


def _expects_hu(card: ModelCard, number: int) -> bool | None:
    """Return whether a model was trained on HU; None where the card does not tell."""
    data = card.training_data
    if data is not None and number < len(data.low.channels):
        low, high = data.low.channels[number].is_hu, data.high.channels[number].is_hu
        return low if low == high else None
    if len(card.channels) > 1 or not card.modality:
        return None
    if card.modality == "CT":
        intensity = card.intensity.of_channel(number)
        return True if intensity.kind in ("window", "window_zscore") and intensity.low < 0 else None
    return False


def _other_scale(values: Values, card: ModelCard, number: int, whose: str) -> str:
    """Return how values without HU differ from the training's, for models that take them as they are; or ""."""
    data, intensity = card.training_data, card.intensity.of_channel(number)
    if data is None or intensity.kind not in _ABSOLUTE:
        return ""
    low, high = data.low.channels[number], data.high.channels[number]
    room = _VALUES * (high.high - low.low)
    for name, word in (("low", "0.5th percentile"), ("median", "median"), ("high", "99.5th percentile")):
        found, least, most = (float(getattr(one, name)) for one in (values, low, high))
        if not least - room <= found <= most + room:
            unit = f" {intensity.unit}" if intensity.unit else ""
            return (
                f"The {word} of the {whose}'s values is {_number(found)}; {card.name} was trained on "
                f"{_span(least, most)}{unit}. Do not trust the result: bring the values to that scale first."
            )
    return ""


# --- place and size


def _wrong_region(measures: Measures, meta: Mapping[str, Any], card: ModelCard, data: TrainingData) -> Iterator[Misfit]:
    """Yield another part of the body, or a larger or smaller one."""
    stated = str(meta.get("body_part") or "")
    there, wanted = _regions(stated), _regions(card.body_part)
    if there and wanted and min(abs(a - b) for a in there for b in wanted) > 1:
        yield Misfit(
            "region",
            f"The file says that the volume shows the {stated.lower()}; {card.name} was trained on: "
            f"{card.body_part}. Do not trust the result: choose another model.",
        )
    if measures.section_cm2 == 0:
        yield Misfit("region", "The volume shows nothing: all its values are alike.")
    low, high, more = data.low, data.high, _FEW / data.n_cases
    if not meta.get(NO_SPACING):
        if misfit := _wrong_size(measures, card, data):
            yield misfit
        found, times = measures.section_cm2, _SECTION + more
        if not low.section_cm2 / times <= found <= high.section_cm2 * times:
            yield Misfit(
                "region",
                f"The body in this volume has a cross-section of {_number(found)} cm²; {card.name} was "
                f"trained on {_span(low.section_cm2, high.section_cm2)} cm²{_of(card)}. It seems to be "
                "another part of the body: do not trust the result.",
            )
    if measures.rim > high.rim + _RIM + more:
        yield Misfit(
            "region",
            f"The body fills {_percent(measures.rim)} of the volume's sides; {card.name} was "
            f"trained on volumes where it fills {_percent(low.rim, high.rim)}{_of(card)}. Give it a volume that is "
            "not cropped so closely.",
        )
    elif measures.rim < low.rim - _RIM - more:
        yield Misfit(
            "region",
            f"The body fills {_percent(measures.rim)} of the volume's sides; {card.name} was "
            f"trained on volumes where it fills {_percent(low.rim, high.rim)}{_of(card)}. Crop the volume as "
            "those were.",
        )


def _wrong_size(measures: Measures, card: ModelCard, data: TrainingData) -> Misfit | None:
    """Return whether the volume shows much less or much more of a body, in mm."""
    low, high, more = data.low, data.high, _FEW / data.n_cases
    pairs = list(zip(measures.body_mm, low.body_mm, high.body_mm, strict=True))
    smaller = sorted(least / found if found else math.inf for found, least, _ in pairs)
    is_small = smaller[-2] > _SMALLER + more or smaller[-1] > _MUCH_SMALLER + more
    is_large = any(found > most * (_LARGER + more) for found, _, most in pairs)
    if not (is_small or is_large):
        return None
    advice = "Crop it as those were." if is_large and not is_small else "Give it a volume that shows as much of a body."
    if is_small and is_large:
        advice = "It seems to be another part of the body: do not trust the result."
    return Misfit(
        "region",
        f"The volume shows {_sizes(measures.body_mm)} mm of a body (z, y, x); {card.name} was "
        f"trained on {_spans(low.body_mm, high.body_mm)} mm{_of(card)}. {advice}",
    )


def _regions(text: str) -> set[int]:
    text = text.casefold()
    return {place for word, place in _REGIONS.items() if word in text}


def _wrong_spacing(measures: Measures, card: ModelCard) -> Iterator[Misfit]:
    """Yield voxels that are much larger, or, for a model that takes them as they are, much smaller."""
    data, spacing = card.training_data, measures.spacing_mm
    if data is None:
        if card.spacing_mm:  # the median, in the order of the files
            ratio = np.sort(spacing) / np.sort(card.spacing_mm)
            if ratio.max() > 2 or ratio.min() < 1 / _FINER:
                yield Misfit(
                    "spacing",
                    f"The voxels are {_sizes(sorted(spacing))} mm; {card.name} was trained with "
                    f"about {_sizes(sorted(card.spacing_mm))} mm. Look at the result closely.",
                    False,
                )
        return
    low, high = data.low.spacing_mm, data.high.spacing_mm
    grave = any(found >= _MUCH_COARSER * most for found, most in zip(spacing, high, strict=True))
    coarse = [found > _COARSER * most for found, most in zip(spacing, high, strict=True)]
    fine = [found < least / _FINER for found, least in zip(spacing, low, strict=True)]
    advice = "Do not trust the result" if grave else "Look at the result closely"
    resamples = card.pipeline != "single" or bool(card.settings.get("spacing_mm"))
    if coarse == [True, False, False]:
        yield Misfit(
            "spacing",
            f"The slices are {_number(spacing[0])} mm apart; {card.name} was trained with "
            f"{_span(low[0], high[0])} mm. {advice}, and use thinner slices if there are any.",
            grave,
        )
    elif any(coarse) or (any(fine) and not resamples):
        yield Misfit(
            "spacing",
            f"The voxels are {_sizes(spacing)} mm (z, y, x); {card.name} was trained with "
            f"{_spans(low, high)} mm. {advice}.",
            grave,
        )


# --- words


def _of(card: ModelCard) -> str:
    return f" ({card.body_part})" if card.body_part else ""


def _span(low: float, high: float) -> str:
    one, other = _number(low), _number(high)
    return one if one == other else f"{one} to {other}"


def _spans(low: Sequence[float], high: Sequence[float]) -> str:
    return " x ".join(_span(*pair) for pair in zip(low, high, strict=True))


def _sizes(mm: Sequence[float]) -> str:
    return " x ".join(map(_number, mm))


def _number(value: float) -> str:
    """Return a number as people write it: three digits, and no exponent."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _percent(low: float, high: float | None = None) -> str:
    one, other = f"{100 * low:.0f}", f"{100 * (low if high is None else high):.0f}"
    return f"{one} %" if one == other else f"{one} to {other} %"

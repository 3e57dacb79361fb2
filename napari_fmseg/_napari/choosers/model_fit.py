"""How well models fit the volumes of a viewer; every layer is measured once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from napari_fmseg._napari.choosers.image_volumes import ImageVolume, channels_by_number
from napari_fmseg._napari.layer_transform import has_spacing
from napari_fmseg._napari.layers import voxels_of
from napari_fmseg.core.errors import GeometryMismatch
from napari_fmseg.core.volume import NO_SPACING, Geometry
from napari_fmseg.models.card import ModelCard
from napari_fmseg.models.fit import Fit, Misfit, find_misfits, modality_of, rank
from napari_fmseg.models.measures import Measures, measure

__all__ = ["fits_of", "misfits_of"]

_measured: WeakKeyDictionary[Any, tuple[Geometry, Measures]] = WeakKeyDictionary()


def misfits_of(card: ModelCard, cases: Sequence[ImageVolume]) -> tuple[Misfit, ...]:
    """Find how a volume differs from those that a model was trained on; nothing where nobody knows where it lies.

    Parameters
    ----------
    card
        Of the model.
    cases
        The volume; or, for a model of several channels, an image for each.
    """
    try:
        measured = [_measures_of(case) for case in cases]
    except GeometryMismatch:
        return ()
    first, meta = cases[0], dict(cases[0].meta)
    if len(cases) > 1:  # what one file states does not hold for the others
        meta = {"channel_units": tuple(str(case.meta.get("units", "")) for case in cases)}
    if not has_spacing(first.layers[0]):
        meta[NO_SPACING] = True
    values = tuple(values for one in measured for values in one.channels)
    return find_misfits(dataclasses.replace(measured[0], channels=values), meta, card)


def fits_of(cards: Iterable[ModelCard], case: ImageVolume, cases: Sequence[ImageVolume]) -> tuple[Fit, ...]:
    """Order models by how well they fit a volume, the best first.

    Parameters
    ----------
    cards
        Of the models.
    case
        The volume.
    cases
        All volumes of the viewer. Those whose names say that they are further channels of the volume are taken as such;
        for a model of the volume's stated modality any that are open may be.
    """
    return rank(Fit(card, _misfits_among(card, case, cases)) for card in cards)


def _misfits_among(card: ModelCard, case: ImageVolume, cases: Sequence[ImageVolume]) -> tuple[Misfit, ...]:
    n = len(card.channels)
    if case.n_channels > 1 or n == 1:
        return misfits_of(card, (case,))
    if group := channels_by_number(cases, n, case):
        return misfits_of(card, group)
    found = misfits_of(card, (case,))
    may_be_another = modality_of(case.meta) == card.modality and sum(other.n_channels == 1 for other in cases) >= n
    return tuple(misfit for misfit in found if misfit.kind != "channels") if may_be_another else found


def _measures_of(case: ImageVolume) -> Measures:
    """Measure a volume, or return what was measured of it in the same place."""
    layer, geometry = case.layers[0], case.geometry
    known = _measured.get(layer)
    if known is None or known[0] != geometry or len(known[1].channels) != case.n_channels:
        arrays = [voxels_of(layer) for layer in case.layers]
        channels = [array for data in arrays for array in ([data] if data.ndim == 3 else data)]
        known = _measured[layer] = geometry, measure(channels, geometry, case.meta)
    return known[1]

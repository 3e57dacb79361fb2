"""Settings of the pipelines in cards and recipes; without torch, so that recipes can be checked quickly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from napari_fmseg.core.errors import UnknownModel
from napari_fmseg.core.structuring import Range, structure, wrong_number

__all__ = ["SETTINGS", "STAGES", "CoarseFineSettings", "PhasedSettings", "SingleSettings"]

T = TypeVar("T")

STAGES: dict[str, tuple[str, ...]] = {
    "coarse_fine": ("coarse", "fine"),
    "phased": ("consensus", "attention", "edge"),
    "single": ("net",),
}
"""The stages of every pipeline in order; here, so that a panel can list them without torch."""


_SIZE = Range(1, 4096)
_PHASED_RANGES = {
    "consensus_grid": _SIZE,
    "attention_grid": _SIZE,
    "window_threshold": Range(0, 1),
    "window_share": Range(0, 1),
    "window_margin": Range(0, 4096),
}


@dataclass(frozen=True)
class PhasedSettings:
    """What a phased model's card stores beside its networks.

    Parameters
    ----------
    consensus_grid
        Voxels (z, y, x) on which the whole volume is seen, at least 32 each. Published: 128 x 128 x 128.
    attention_grid
        Voxels (z, y, x) on which the window is seen, at least 32 each. Published: 128 x 128 x 128.
    window
        ``"largest"``: around the largest piece of likely foreground (published 2023). ``"all"``: around every piece
        of at least `window_share` of the largest, for organs that lie apart. ``"certain"``: published 2022.
    window_threshold
        Probability of foreground from which a voxel counts.
    window_share
        Share of the largest piece that another one needs, with a window around ``"all"``.
    window_margin
        Consensus voxels added before and after the foreground, at most to the border.
    edge_grid
        ``"native"``: the window's native voxels, exact by planes with a halo. ``"attention"``: the attention grid, as
        published.
    crop_above
        Look only at the box around all voxels above this normalised intensity (0..1), so that the air around a patient
        occupies no voxel of the consensus grid. None looks at the whole volume.
    """

    consensus_grid: tuple[int, int, int] = (128, 128, 128)
    attention_grid: tuple[int, int, int] = (128, 128, 128)
    window: str = "largest"
    window_threshold: float = 0.1
    window_share: float = 0.02
    window_margin: tuple[int, int] = (2, 3)
    edge_grid: str = "native"
    crop_above: float | None = None

    @classmethod
    def of(cls, card_settings: Mapping[str, Any]) -> PhasedSettings:
        """Read the settings of a card.

        Raises
        ------
        UnknownModel
            If one of them is unknown or makes no sense.
        """
        try:
            settings = _settings_from(cls, card_settings)
        except ValueError as error:
            raise UnknownModel(f"The settings are not those of a phased model: {error}. Correct them.") from error
        if settings.window not in ("largest", "all", "certain") or settings.edge_grid not in ("native", "attention"):
            raise UnknownModel(
                f"window is 'largest', 'all' or 'certain' and edge_grid 'native' or 'attention', "
                f"not {settings.window!r} and {settings.edge_grid!r}. Correct the settings."
            )
        if wrong := wrong_number(settings, _PHASED_RANGES):
            raise UnknownModel(f"{wrong}. Correct the settings of the phased model.")
        return settings


@dataclass(frozen=True)
class SingleSettings:
    """What the card of a model with one network stores beside it.

    Parameters
    ----------
    window
        Voxels (z, y, x) that the network sees at once; cut to the volume where that is smaller. Published: 64 x 128 x
        128.
    overlap
        Share of a window that the next one sees again, from 0 to below 1.
    batch
        Windows at once.
    spacing_mm
        Spacing (z, y, x) on which the network sees the volume; empty for the volume's own, as published.
    flips
        Axes out of ``"zyx"`` along which the volume is mirrored too, and the results averaged: 2, 4 or 8 times the
        work. Published: ``"yx"``.
    keep_largest
        ``"each"`` keeps the largest part of every class, ``"together"`` the largest part of all classes joined (both
        through faces, as published); ``""`` keeps everything.
    crop_above
        Look only at the box around all voxels above this normalised intensity (0..1) in any channel: most of a
        whole-body PET is air. None looks at the whole volume.
    """

    window: tuple[int, int, int] = (64, 128, 128)
    overlap: float = 0.5
    batch: int = 1
    spacing_mm: tuple[float, ...] = ()
    flips: str = ""
    keep_largest: str = ""
    crop_above: float | None = None

    @classmethod
    def of(cls, card_settings: Mapping[str, Any]) -> SingleSettings:
        """Read the settings of a card.

        Raises
        ------
        UnknownModel
            If one of them is unknown or makes no sense.
        """
        try:
            settings = _settings_from(cls, card_settings)
        except ValueError as error:
            raise UnknownModel(f"The settings are not those of a single network: {error}. Correct them.") from error
        spacing = settings.spacing_mm
        right = {
            "window": not wrong_number(settings, {"window": _SIZE}),
            "overlap": 0 <= settings.overlap < 1,
            "batch": 1 <= settings.batch <= 4096,
            "spacing_mm": not spacing or (len(spacing) == 3 and min(spacing) > 0),
            "flips": set(settings.flips) <= set("zyx") and len(set(settings.flips)) == len(settings.flips),
            "keep_largest": settings.keep_largest in ("", "each", "together"),
        }
        wrong = [f"{name} = {getattr(settings, name)!r}" for name, fine in right.items() if not fine]
        if wrong:
            raise UnknownModel(f"The settings of a single network make no sense: {', '.join(wrong)}. Correct them.")
        return settings


@dataclass(frozen=True)
class CoarseFineSettings:
    """What the card of a coarse-to-fine model stores beside its networks.

    Parameters
    ----------
    coarse_size
        Voxels (z, y, x) on which the coarse network sees the whole volume. Published: 160 x 160 x 160.
    fine_size
        Voxels (z, y, x) on which the fine network sees the box around what was found. Published: 192 x 192 x 192.
    margin_mm
        How far the box reaches beyond what the coarse network found, at most to the volume's border. Published: 20 mm.
    threshold
        Probability from which a voxel belongs to a class, where classes may overlap (a sigmoid).
    overlap
        Which class a voxel gets that belongs to several: ``"probable"``, the most probable one, or ``"last"``, the one
        with the highest number, as published.
    coarse_max_components, fine_max_components
        How many connected parts of each class are kept, the largest first: a number per class, or one for all classes;
        0, or nothing, keeps all. Published for liver, kidneys, spleen and pancreas: 1, 2, 1, 1, in both.
    coarse_min_ml, fine_min_ml
        Connected parts up to this many millilitres are removed. Published: 1 and 2 ml, for large organs.
    crop_above
        Look only at the box around all voxels above this intensity as it is stored, so that the air around a patient
        occupies no voxel of the coarse grid. None looks at the whole volume, as published.
    """

    coarse_size: tuple[int, int, int] = (160, 160, 160)
    fine_size: tuple[int, int, int] = (192, 192, 192)
    margin_mm: float = 20.0
    threshold: float = 0.5
    overlap: str = "probable"
    coarse_max_components: tuple[int, ...] = ()
    fine_max_components: tuple[int, ...] = ()
    coarse_min_ml: float = 0.0
    fine_min_ml: float = 0.0
    crop_above: float | None = None

    @classmethod
    def of(cls, card_settings: Mapping[str, Any]) -> CoarseFineSettings:
        """Read the settings of a card.

        Raises
        ------
        UnknownModel
            If one of them is unknown or makes no sense.
        """
        try:
            settings = _settings_from(cls, card_settings)
        except ValueError as error:
            raise UnknownModel(
                f"The settings are not those of a coarse-to-fine model: {error}. Correct them."
            ) from error
        right = {
            "coarse_size": not wrong_number(settings, {"coarse_size": _SIZE}),
            "fine_size": not wrong_number(settings, {"fine_size": _SIZE}),
            "margin_mm": settings.margin_mm >= 0,
            "threshold": 0 < settings.threshold < 1,
            "overlap": settings.overlap in ("probable", "last"),
            "coarse_max_components": min(settings.coarse_max_components, default=0) >= 0,
            "fine_max_components": min(settings.fine_max_components, default=0) >= 0,
            "coarse_min_ml": settings.coarse_min_ml >= 0,
            "fine_min_ml": settings.fine_min_ml >= 0,
        }
        wrong = [f"{name} = {getattr(settings, name)!r}" for name, fine in right.items() if not fine]
        if wrong:
            raise UnknownModel(
                f"The settings of a coarse-to-fine model make no sense: {', '.join(wrong)}. Correct them."
            )
        return settings


def _settings_from(kind: type[T], card_settings: Mapping[str, Any]) -> T:
    """Make settings; `half_is_right` of older cards is ignored (see `ModelCard.half_precision_ok`)."""
    return structure(kind, {name: value for name, value in card_settings.items() if name != "half_is_right"})


SETTINGS: dict[str, type[PhasedSettings] | type[SingleSettings] | type[CoarseFineSettings]] = {
    "coarse_fine": CoarseFineSettings,
    "phased": PhasedSettings,
    "single": SingleSettings,
}
"""The settings class of each pipeline; read them with ``SETTINGS[pipeline].of(card.settings)``."""

"""The pipelines by name, and the settings of each; without torch, so that cards and recipes can be checked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

from napari_fmseg.core.errors import UnknownModel
from napari_fmseg.core.structuring import Range, structure, wrong_number

__all__ = ["PIPELINES", "CoarseFineSettings", "NNUNetSettings", "PhasedSettings", "Pipeline", "PipelineSettings",
           "Resampling", "SingleSettings"]  # fmt: skip

_SIZE = Range(1, 4096)


@dataclass(frozen=True)
class PipelineSettings(ABC):
    """What the settings of every pipeline share; each is a frozen dataclass whose defaults are those published."""

    MODEL: ClassVar[str] = "a model"
    """What a model with these settings is called in messages."""

    @classmethod
    def of(cls, card_settings: Mapping[str, Any]) -> Self:
        """Read the settings of a card; `UnknownModel` if one of them is unknown or out of range."""
        # Older cards have `half_is_right` here; see `ModelCard.half_precision_ok`.
        given = {name: value for name, value in card_settings.items() if name != "half_is_right"}
        try:
            settings = structure(cls, given)
        except ValueError as error:
            raise UnknownModel(f"The settings are not those of {cls.MODEL}: {error}. Correct them.") from error
        wrong = [f"{name} = {getattr(settings, name)!r}" for name, right in settings.checks().items() if not right]
        if wrong:
            raise UnknownModel(f"The settings of {cls.MODEL} are out of range: {', '.join(wrong)}. Correct them.")
        return settings

    def checks(self) -> dict[str, bool]:
        """Return for each setting that has a range or a list of values whether it is within."""
        return {}

    @abstractmethod
    def input_size(self, stage: str) -> tuple[int, int, int]:
        """Return the voxels (z, y, x) that the network of a stage takes as input."""

    def with_new_classes(self) -> Self:
        """Return the settings for a model that is to learn further classes."""
        return self

    def summary(self, stages: Collection[str]) -> str:
        """Return a sentence on the grids of these stages, or ""."""
        return ""


_LARGEST = ("", "each", "together")


@dataclass(frozen=True)
class PhasedSettings(PipelineSettings):
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
        ``"native"``: the window's native voxels, exact by blocks with a halo. ``"attention"``: the attention grid, as
        published.
    crop_above
        Look only at the box around all voxels above this normalised intensity (0..1), so that the air around a patient
        occupies no voxel of the consensus grid. None looks at the whole volume.
    keep_largest
        ``"each"`` keeps the largest part of every class, ``"together"`` the largest part of all classes joined, both
        through faces; ``""`` keeps everything.
    careful
        Whether the consensus network also looks at the volume zoomed and shifted in five ways, and the answers are
        averaged: five to six times its work.
    """

    consensus_grid: tuple[int, int, int] = (128, 128, 128)
    attention_grid: tuple[int, int, int] = (128, 128, 128)
    window: str = "largest"
    window_threshold: float = 0.1
    window_share: float = 0.02
    window_margin: tuple[int, int] = (2, 3)
    edge_grid: str = "native"
    crop_above: float | None = None
    keep_largest: str = ""
    careful: bool = False

    MODEL: ClassVar[str] = "a phased model"

    def checks(self) -> dict[str, bool]:
        """Return for each setting that has a range or a list of values whether it is within."""
        ranges = {
            **{"consensus_grid": _SIZE, "attention_grid": _SIZE, "window_margin": Range(0, 4096)},
            **{"window_threshold": Range(0, 1), "window_share": Range(0, 1)},
        }
        return {
            "window": self.window in ("largest", "all", "certain"),
            "edge_grid": self.edge_grid in ("native", "attention"),
            "keep_largest": self.keep_largest in _LARGEST,
            **{name: not wrong_number(self, {name: one}) for name, one in ranges.items()},
        }

    def input_size(self, stage: str) -> tuple[int, int, int]:
        """Return the voxels (z, y, x) that the network of a stage takes as input."""
        return self.consensus_grid if stage == "consensus" else self.attention_grid

    def with_new_classes(self) -> Self:
        """Return the settings with a window around all components: the largest alone would cut off the others."""
        return replace(self, window="all") if self.window == "largest" else self

    def summary(self, stages: Collection[str]) -> str:
        """Return a sentence on the grids of these stages."""
        coarse, fine = (" x ".join(map(str, grid)) for grid in (self.consensus_grid, self.attention_grid))
        later = f", then what was found on {fine}" if "attention" in stages else ""
        kept = {"each": "each structure", "together": "all structures together"}.get(self.keep_largest)
        rest = f" Of {kept} only the largest connected component is kept." if kept else ""
        return (
            f"The whole volume is seen on {coarse} voxels{later}{', then its edge' if 'edge' in stages else ''}.{rest}"
        )


@dataclass(frozen=True)
class SingleSettings(PipelineSettings):
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

    MODEL: ClassVar[str] = "a single network"

    def checks(self) -> dict[str, bool]:
        """Return for each setting that has a range or a list of values whether it is within."""
        return {
            "window": not wrong_number(self, {"window": _SIZE}),
            "overlap": 0 <= self.overlap < 1,
            "batch": 1 <= self.batch <= 4096,
            "spacing_mm": not self.spacing_mm or (len(self.spacing_mm) == 3 and min(self.spacing_mm) > 0),
            "flips": set(self.flips) <= set("zyx") and len(set(self.flips)) == len(self.flips),
            "keep_largest": self.keep_largest in _LARGEST,
        }

    def input_size(self, stage: str) -> tuple[int, int, int]:
        """Return the voxels (z, y, x) of a window."""
        return self.window


@dataclass(frozen=True)
class CoarseFineSettings(PipelineSettings):
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

    MODEL: ClassVar[str] = "a coarse-to-fine model"

    def checks(self) -> dict[str, bool]:
        """Return for each setting that has a range or a list of values whether it is within."""
        return {
            "coarse_size": not wrong_number(self, {"coarse_size": _SIZE}),
            "fine_size": not wrong_number(self, {"fine_size": _SIZE}),
            "margin_mm": self.margin_mm >= 0,
            "threshold": 0 < self.threshold < 1,
            "overlap": self.overlap in ("probable", "last"),
            "coarse_max_components": min(self.coarse_max_components, default=0) >= 0,
            "fine_max_components": min(self.fine_max_components, default=0) >= 0,
            "coarse_min_ml": self.coarse_min_ml >= 0,
            "fine_min_ml": self.fine_min_ml >= 0,
        }

    def input_size(self, stage: str) -> tuple[int, int, int]:
        """Return the voxels (z, y, x) that the network of a stage takes as input."""
        return self.coarse_size if stage == "coarse" else self.fine_size


@dataclass(frozen=True)
class Resampling:
    """How nnU-Net brings images, labels or logits to another grid.

    Parameters
    ----------
    how
        ``"spline"``, nnU-Net's default; ``"torch"``, linear; ``"none"``, not at all.
    order, order_z
        Of the spline, 0 to 3; along an axis that is resampled by itself.
    separate
        When the axis of the largest spacing is resampled by itself: ``"auto"``, where one of both grids has a ratio of
        its spacings above `threshold`; ``"always"`` or ``"never"``.
    threshold
        See `separate`. Published: 3.
    """

    how: str = "spline"
    order: int = 1
    order_z: int = 0
    separate: str = "auto"
    threshold: float = 3.0


@dataclass(frozen=True)
class NNUNetSettings(PipelineSettings):
    """What the card of an imported nnU-Net model stores beside its networks; sizes are in the network's order.

    Parameters
    ----------
    mode
        ``"exact"``: nnU-Net's own arithmetic. ``"fast"``: in 16 bit where the device computes in it, so that voxels at
        borders may differ (Dice against exact at least 0.998).
    window
        Voxels that the network sees at once; one slice where it sees slices.
    spacing_mm
        Spacing on which the network sees the volume; a 0 stands for the volume's own.
    axes
        Which axis (0 z, 1 y, 2 x) of the volume each axis of the network is.
    orientation
        ``"file"``: voxels in the order in which the file holds them. ``"RAS"``: reordered to superior, anterior, right.
    mirror
        Axes of the network along which windows are mirrored too, and the results averaged.
    masked
        Of each channel, whether it is normalised by the voxels around which the volume is not 0.
    image, logits, labels
        How each is resampled; labels are those of the earlier stage of a cascade.
    regions
        The labels of structures that may overlap, in the order in which they are painted; empty where classes exclude
        each other.
    lowres
        The settings of the earlier stage of a cascade.
    previous
        The labels of the earlier stage that the network takes, one channel each.
    """

    mode: str = "exact"
    window: tuple[int, int, int] = (128, 128, 128)
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)
    axes: tuple[int, int, int] = (0, 1, 2)
    orientation: str = "file"
    mirror: tuple[int, ...] = ()
    masked: tuple[bool, ...] = ()
    image: Resampling = field(default_factory=lambda: Resampling(order=3))
    logits: Resampling = field(default_factory=Resampling)
    labels: Resampling = field(default_factory=Resampling)
    regions: tuple[int, ...] = ()
    lowres: Mapping[str, Any] = field(default_factory=dict)
    previous: tuple[int, ...] = ()

    MODEL: ClassVar[str] = "a model of nnU-Net"

    def checks(self) -> dict[str, bool]:
        """Return for each setting that has a range or a list of values whether it is within."""
        return {
            "mode": self.mode in ("exact", "fast"),
            "window": not wrong_number(self, {"window": _SIZE}),
            "spacing_mm": min(self.spacing_mm[1:]) > 0 and self.spacing_mm[0] >= 0,
            "axes": sorted(self.axes) == [0, 1, 2],
            "orientation": self.orientation in ("file", "RAS"),
            "mirror": set(self.mirror) <= {0, 1, 2},
            "image": _is_known(self.image),
            "logits": _is_known(self.logits) and max(self.logits.order, self.logits.order_z) < 2,
            "labels": _is_known(self.labels),
        }

    @property
    def sees_slices(self) -> bool:
        """Whether the network sees single slices."""
        return self.spacing_mm[0] == 0

    def input_size(self, stage: str) -> tuple[int, int, int]:
        """Return the voxels of a window."""
        return NNUNetSettings.of(self.lowres).window if stage == "lowres" else self.window

    def with_new_classes(self) -> Self:
        """Return the settings for voxels in an order that does not depend on the file, as training shows them."""
        return replace(self, orientation="RAS")


def _is_known(resampling: Resampling) -> bool:
    orders = range(4)
    return (
        resampling.how in ("spline", "torch", "none")
        and resampling.order in orders
        and resampling.order_z in orders
        and resampling.separate in ("auto", "always", "never")
    )


@dataclass(frozen=True)
class Pipeline:
    """A way to use the networks of a model, as far as it is known without torch.

    Parameters
    ----------
    name
        The key in `PIPELINES`; cards and recipes name it.
    stages
        The networks' names in a card, in the order in which they run.
    settings
        What a card sets beside the networks.
    module
        Where ``run`` and ``explain_inputs`` are; see `napari_fmseg.pipelines.PipelineModule`.
    windowed
        Whether the network takes windows of the volume, so that an explanation needs a place first.
    half_precision_ok
        Whether half precision gives the same masks where a card has no measurement; None where nobody knows.
    """

    name: str
    stages: tuple[str, ...]
    settings: type[PipelineSettings]
    module: str
    windowed: bool = False
    half_precision_ok: bool | None = None


PIPELINES: dict[str, Pipeline] = {
    pipeline.name: pipeline
    for pipeline in (
        Pipeline("coarse_fine", ("coarse", "fine"), CoarseFineSettings, "napari_fmseg.pipelines.coarse_fine"),
        Pipeline("nnunet", ("lowres", "windows"), NNUNetSettings, "napari_fmseg.pipelines.nnunet", True),
        Pipeline("phased", ("consensus", "attention", "edge"), PhasedSettings, "napari_fmseg.pipelines.phased"),
        Pipeline("single", ("net",), SingleSettings, "napari_fmseg.pipelines.single", True, half_precision_ok=False),
    )
}
"""Every pipeline by its name."""

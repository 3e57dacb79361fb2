"""What to segment, with which model, how far and where: the upper part of the segment dock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QComboBox, QWidget

from napari_fmseg._napari.choosers.channel_chooser import ChannelChooser
from napari_fmseg._napari.choosers.image_chooser import ImageChooser, RegionChooser
from napari_fmseg._napari.choosers.image_volumes import ImageVolume, case_with, channels_by_number
from napari_fmseg._napari.choosers.label_pairing import record_of
from napari_fmseg._napari.choosers.model_chooser import ModelChooser
from napari_fmseg._napari.choosers.model_fit import misfits_of
from napari_fmseg._napari.common.event_links import Links
from napari_fmseg._napari.common.options_form import OptionsForm
from napari_fmseg._napari.common.preferences import PRECISIONS, list_device_names, load
from napari_fmseg._napari.common.tooltips import SEGMENT
from napari_fmseg._napari.common.widgets import NO_MARGINS, Collapsible, Note, add_row, form, limit_width, vbox
from napari_fmseg._napari.layer_transform import Frame, fmseg_metadata, has_spacing
from napari_fmseg._napari.layers import voxels_of
from napari_fmseg._napari.segment.run_request import Request, Run
from napari_fmseg.core.errors import FmsegError
from napari_fmseg.models.card import ModelCard
from napari_fmseg.pipelines import SegmentOptions, stages_of

__all__ = ["Choices"]

AS_CARD = "model's own"
OVERLAPS = ((AS_CARD, None), *((f"{100 * v:.0f} %", v) for v in (0.0, 0.25, 0.5, 0.625, 0.75)))
BATCHES = ((AS_CARD, None), *((str(n), n) for n in (1, 2, 4, 8, 16)))
CHOICES: dict[str, Sequence[Any]] = {
    "precision": PRECISIONS,
    "overlap": OVERLAPS,
    "window_batch": BATCHES,
    "blend": (("Gaussian", "gaussian"), ("plain mean", "constant")),
    "careful": ((AS_CARD, None), ("yes", True), ("no", False)),
    "mode": ((AS_CARD, ""), ("exact", "exact"), ("fast", "fast")),
}
WORDS = {
    "precision": "Precision",
    "keep_largest": "Largest component only",
    "min_component_ml": "Remove below (ml)",
    "show_stages": "Show the stages",
    "overlap": "Windows overlap",
    "window_batch": "Windows at once",
    "blend": "Blend windows",
    "careful": "More careful, 5 times slower",
    "mirror": "Mirror windows too",
    "mode": "Mode (nnU-Net)",
    "max_memory_gb": "Use memory up to (GB)",
    "strict": "Refuse what does not fit",
}


class Choices(QWidget):
    """The forms for one run on a volume of the viewer."""

    changed = Signal()  # another volume or model, so that a run may have become possible or impossible

    def __init__(self, viewer: Any, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.image = ImageChooser(viewer)
        self.channels = ChannelChooser(viewer)
        self.model = ModelChooser()
        self.region = RegionChooser(viewer)
        self.until, self.device = QComboBox(), QComboBox()
        for combo in (self.until, self.device):  # a long name must not make the panel wider than it is
            limit_width(combo, 10)
        self.options = OptionsForm(SegmentOptions, skip=("until", "device"), choices=CHOICES, labels=WORDS)
        self.more = Collapsible("Mor&e options", self.options, "Precision, windows, and how the labels are cleaned.")
        self.warnings, self.misfits = Note(), Note()  # the dock puts the latter next to Run
        self._is_choosing_channels = False
        self._ordered: tuple[str, ...] = ()  # the model, and the volumes that were put in the order of its channels
        self._fill()
        self._lay_out()
        self.image.chosen.connect(self._on_image)
        self.channels.chosen.connect(self._on_image)
        self.model.chosen.connect(self._on_model)
        self._viewer, self._links = viewer, Links(self)
        self._links.connect(self._on_active, viewer.layers.selection.events.active)
        self._on_model()
        self._on_image()

    def _fill(self) -> None:
        preferred = load()
        self.device.addItems(list_device_names())
        self.device.setCurrentText(preferred.device)
        self.device.setToolTip(SEGMENT.device)
        self.until.setToolTip(SEGMENT.stage)
        self.options.set_values({"precision": preferred.precision})

    def _lay_out(self) -> None:
        above, below = form(), form()
        for where, name, field, shown in (
            (above, "&Image", self.image, self.image),
            (above, "&Model", self.model.search, self.model),
            (below, "S&tage", self.until, self.until),
            (below, "Re&gion", self.region.combo, self.region),
            (below, "&Device", self.device, self.device),
        ):
            add_row(where, name, field, shown=shown).setMinimumWidth(48)  # one column over both forms
        about = Collapsible("About this model", self.model.rest, SEGMENT.model_card)
        model = (self.model.facts, self.model.download, about, self.model.accept)
        parts = (above, self.channels, *model, self.warnings, below, self.more)
        vbox(*parts, of=self, margins=NO_MARGINS, spacing=6)

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages that will run."""
        card, until = self.model.card, self.until.currentData()
        stages = stages_of(card) if card is not None else ()
        return stages[: stages.index(until) + 1] if until else stages

    def disabled_reason(self) -> str:
        """Return why nothing can be run, or nothing."""
        case, card = self.image.case, self.model.card
        if case is None:
            return self.image.refusal or SEGMENT.run_no_image
        if card is None:
            return self._model_refusal()
        for one in (case, *(other for other in self.channels.cases if other is not None)):
            if self._no_place(one):
                return self._no_place(one)
        trouble = self._unfit_channels(case) if self.channels.names and not self.model.terms else ""
        if trouble:
            return trouble
        if not (self.channels.names or self.model.terms) and case.n_channels != len(card.channels):
            return (f"This model takes {len(card.channels)} channel(s) ({', '.join(card.channels)}); the volume has "
                    f"{case.n_channels}. Choose another model or volume.")  # fmt: skip
        return self._model_refusal()

    def _model_refusal(self) -> str:
        """Return why the chosen model cannot be run on anything, or nothing."""
        card = self.model.card
        if card is None:
            missing = SEGMENT.run_not_downloaded if self.model.offer else SEGMENT.run_no_model
            return self.model.reason or missing
        if self.model.terms:
            return "Accept the terms of this model first."
        try:
            stages_of(card)
            _ = card.weights_path
        except FmsegError as error:
            return str(error)
        return ""

    def _unfit_channels(self, first: ImageVolume) -> str:
        """Return which channel has no image of its own, or nothing."""
        taken = [first.id]
        for name, case in zip(self.channels.names, self.channels.cases, strict=True):
            if case is None or case.id in taken:
                return f"Choose another image for {name}: every channel of this model is an image of its own."
            if case.n_channels > 1:
                return f"The image for {name} has {case.n_channels} channels. Choose one that has one."
            taken.append(case.id)
        return ""

    def request(self) -> Request:
        """Return what to run; only while `disabled_reason` is empty.

        Raises
        ------
        GeometryMismatch
            If the region is not over the image, or nobody can tell where the image lies.
        """
        case, card = self.image.case, self.model.card
        if case is None or card is None:
            raise FmsegError(self.disabled_reason())
        recorded = fmseg_metadata(case.layers[0])
        box = self.region.box(case.layers[0])
        others = tuple(other for other in self.channels.cases if other)
        options = self.options.values()
        if not has_spacing(case.layers[0]):
            options["min_component_ml"] = 0.0  # a voxel has no ml
        return Request(
            Run(case.id, card.name, self.region.region if box is not None else ""),
            case.name,
            tuple(voxels_of(layer) for layer in case.layers),
            case.geometry,
            dict(case.meta),
            recorded.get("filed"),
            str(recorded.get("source") or ""),
            SegmentOptions(self.until.currentData() or "", self.device.currentText(), **options),
            box,
            channels=card.channels if self.channels.names else (),
            others=tuple((voxels_of(other.layers[0]), other.geometry, dict(other.meta)) for other in others),
            frame=Frame.of(case.layers[0]),
            note=record_of(case, others, card.channels if self.channels.names else ()),
        )

    def plan(self) -> tuple[ModelCard, SegmentOptions]:
        """Return the model and how to run it on scans that need not be open: whole, with all stages.

        Raises
        ------
        FmsegError
            If the model cannot be run, with the reason.
        """
        card, refusal = self.model.card, self._model_refusal()
        if card is None or refusal:
            raise FmsegError(refusal)
        return card, SegmentOptions(device=self.device.currentText(), **self.options.values())

    def close_down(self) -> None:
        """Disconnect from the viewer."""
        self._links.end()
        self.image.close_down()
        self.channels.close_down()
        self.region.close_down()

    def _on_image(self) -> None:
        case = self.image.case
        if not self._is_choosing_channels and (case is None or case.is_complete):
            self.model.prefer(case, self.image.cases)
        self._look()

    def _on_active(self) -> None:
        if self.channels.names:  # then the image does not follow the active layer by itself
            self._look()

    def _on_model(self) -> None:
        card, before = self.model.card, self.until.currentData()
        case = self.image.case
        if card is not None and case is not None and case.n_channels == 1 < len(card.channels):
            self._choose_channels(lambda: self.image.choose_other((), card.channels[0]))
        self.until.clear()
        try:
            stages = stages_of(card) if card is not None else ()
        except FmsegError:
            stages = ()  # a card of a newer version; `disabled_reason` says so
        self.until.addItem(f"All: {', '.join(stages)}" if stages else "All", "")
        for i, stage in enumerate(stages[:-1]):
            self.until.addItem(f"Up to {stage} ({'coarse, fastest' if i == 0 else 'finer'})", stage)
        self.until.setCurrentIndex(max(0, self.until.findData(before)))
        self._look()

    def _look(self) -> None:
        """Show warnings about what does not fit."""
        case, card = self.image.case, self.model.card
        several = case is not None and card is not None and case.n_channels == 1 < len(card.channels)
        self.channels.ask_for(card.channels[1:] if card is not None and several else (), case)
        if several and card is not None and case is not None:
            self._order_by_number(card.name, len(card.channels), case)
            case = self.image.case
        self.image.follow = not self.channels.names  # what is opened next is the image for another channel
        spaced = case is None or has_spacing(case.layers[0])
        self.options.allow("min_component_ml", "" if spaced else SEGMENT.min_component_no_spacing)
        self.warnings.tell(self._warnings(case, spaced))
        self.misfits.tell(self._misfits(case))
        self.changed.emit()

    def _misfits(self, case: ImageVolume | None) -> list[str]:
        """Return how the chosen images differ from what the model was trained on."""
        card = self.model.card
        chosen = [one for one in (case, *self.channels.cases) if one is not None]
        if case is None or card is None or len(chosen) <= len(self.channels.names):
            return []
        return [misfit.text for misfit in misfits_of(card, chosen)]

    def _warnings(self, case: ImageVolume | None, spaced: bool) -> list[str]:
        if case is None:
            return [self.image.refusal] if self.image.refusal else []
        if self._no_place(case):
            return []
        reason = [self.model.reason] if self.model.reason else []
        from_file = [str(text) for name in ("repaired", "warnings") for text in case.meta.get(name, ())]
        found = [*reason, *from_file, *([] if spaced else [SEGMENT.no_spacing])]
        chosen = [case, *(other for other in self.channels.cases if other is not None)]
        active = case_with(self.image.cases, self._viewer.layers.selection.active)
        if self.channels.names and active is not None and all(one.id != active.id for one in chosen):
            names = " and ".join(f"“{one.name}”" for one in chosen)
            found.append(f"“{active.name}” is chosen in the layer list, but the model will run on {names}.")
        return found

    @staticmethod
    def _no_place(case: ImageVolume) -> str:
        """Return why nobody knows where an image lies, or nothing."""
        try:
            _ = case.geometry
        except FmsegError as error:
            return str(error)
        return ""

    def _order_by_number(self, model: str, n: int, first: ImageVolume) -> None:
        """Where images are numbered as channels are (_0000, _0001), take them so: not as they happened to be opened.

        Once for a model and the volumes that are open, so that the user may choose otherwise.
        """
        now = (model, *(case.id for case in self.image.cases))
        if now == self._ordered:
            return
        self._ordered = now
        group = channels_by_number(self.image.cases, n, first)
        if group:
            self._choose_channels(lambda: self.image.choose(group[0]))
            self.channels.choose(group[1:])

    def _choose_channels(self, choose: Callable[[], None]) -> None:
        """Choose another image as the first channel of the present model, without choosing another model for it."""
        self._is_choosing_channels = True
        choose()
        self._is_choosing_channels = False
        if self.image.case is not None:
            self.model.keep_for(self.image.case)

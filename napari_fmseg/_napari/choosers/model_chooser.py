"""Choosing a model: a list to search, and what its card says."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from qtpy.QtCore import QEvent, QObject, QSignalBlocker, Qt, Signal
from qtpy.QtGui import QKeyEvent
from qtpy.QtWidgets import QCheckBox, QLineEdit, QListWidget, QListWidgetItem, QWidget

from napari_fmseg._napari.choosers.download_dialog import DownloadDialog
from napari_fmseg._napari.choosers.image_volumes import ImageVolume
from napari_fmseg._napari.choosers.model_fit import fits_of
from napari_fmseg._napari.common.tooltips import SEGMENT
from napari_fmseg._napari.common.widgets import NO_MARGINS, paragraph, push_button, vbox
from napari_fmseg.models.card import ModelCard
from napari_fmseg.models.fit import modality_of
from napari_fmseg.models.licences import remember_terms, unread_terms
from napari_fmseg.models.published import PublishedModel, not_downloaded
from napari_fmseg.models.registry import list_models

__all__ = ["ModelChooser", "all_of", "facts_of"]

ROWS = 4
NOT_FOUND = "No model fits the search. Clear it to see all of them."
NOT_CHOSEN = "No model is chosen. Click one in the list."


class ModelChooser(QWidget):
    """A searchable list of models with what is known of the chosen one.

    Attributes
    ----------
    facts, rest, accept, download
        What the card says in short and in full, the box with which its terms are accepted, and the button that offers a
        published model; the dock puts them over its whole width.
    chosen
        Signal: another model was chosen, or its terms were accepted.
    reason
        Why no model was chosen for the volume; or nothing.
    """

    chosen = Signal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._cards: dict[str, ModelCard] = {}
        self._published: dict[str, PublishedModel] = {}  # those that can be downloaded and were not
        self._case = ""  # id of the volume that a model is chosen for; "" while there is none
        self._by_hand: dict[str, str] = {}  # what the user has chosen for each volume
        self._latest = ""
        self.reason = ""
        self.search = QLineEdit()
        self.search.setPlaceholderText("Search: organ, modality, name …")
        self.search.setClearButtonEnabled(True)
        self.search.setToolTip(SEGMENT.model)
        self.list = QListWidget()
        self.list.setToolTip("The model that will segment the image. Arrow keys choose another.")
        self.list.setSpacing(1)
        self.list.setTextElideMode(Qt.TextElideMode.ElideMiddle)
        self.list.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.facts = paragraph(tip=SEGMENT.model_card, selectable=True)
        self.rest = paragraph(selectable=True)
        self.accept = QCheckBox("I &accept the terms of this model")
        self.accept.setToolTip("The training data of this model restrict its use. You are asked once.")
        self.download = push_button("Download this model …", SEGMENT.download)
        vbox(self.search, self.list, of=self, margins=NO_MARGINS, spacing=3)
        self.search.textEdited.connect(self._settle)
        self.search.textChanged.connect(self._on_search)
        for part in (self.list, self.list.viewport()):
            part.installEventFilter(self)
        self.list.currentItemChanged.connect(self._on_chosen)
        self.accept.toggled.connect(self._on_accepted)
        self.download.clicked.connect(self._on_download)
        self.refresh()

    @property
    def card(self) -> ModelCard | None:
        """The chosen model's card, or None."""
        return self._cards.get(self._current_name)

    @property
    def offer(self) -> PublishedModel | None:
        """The chosen model, if it is one that must be downloaded first."""
        return self._published.get(self._current_name)

    @property
    def _current_name(self) -> str:
        item = self.list.currentItem()
        return "" if item is None or item.isHidden() else str(item.data(Qt.ItemDataRole.UserRole))

    @property
    def terms(self) -> str:
        """Terms of the chosen model that the user has not accepted yet, or ""."""
        return "" if self.card is None else unread_terms(self.card)

    def refresh(self) -> None:
        """Read the cards again: a model may have been trained meanwhile."""
        cards = {card.name: card for card in list_models()}
        published = {one.name: one for one in not_downloaded()}
        # By their text: the Dice of a class that no case had is nan, and so not equal to itself.
        if repr((cards, published)) == repr((self._cards, self._published)):
            return
        name = self.card.name if self.card else "" if self._cards else next(iter(cards), "")
        self._cards, self._published = cards, published
        self.list.clear()
        for card in cards.values():
            self._add(card, card.title, ", ".join(card.labels.values()))
        for one in published.values():
            self._add(one, f"{one.title}  ·  to download", one.segments)
        height = (
            (self.list.sizeHintForRow(0) + 2) * min(ROWS, max(self.list.count(), 1)) + 2 * self.list.frameWidth() + 4
        )
        self.list.setFixedHeight(height)
        self._select(name)
        self._on_search(self.search.text())

    def _add(self, model: ModelCard | PublishedModel, title: str, segments: str) -> None:
        item = QListWidgetItem(f"{model.modality}  ·  {title}" if model.modality else title)
        item.setData(Qt.ItemDataRole.UserRole, model.name)
        item.setToolTip(f"{model.name}: {segments}")
        self.list.addItem(item)

    def choose(self, name: str) -> None:
        """Choose a model by its name, as the user does; none if there is none of that name."""
        self._by_hand[self._case] = self._latest = name
        self.reason = ""
        self._select(name)

    def prefer(self, case: ImageVolume | None, cases: Sequence[ImageVolume]) -> None:
        """Choose the model that fits a volume best, or none; what the user has chosen for it stays.

        Of several models that fit, the one that the user has chosen last is taken.

        Parameters
        ----------
        case
            The volume, or None.
        cases
            All volumes of the viewer, which may be further channels.
        """
        before, self._case = self._case, case.id if case is not None else ""
        if case is None:
            return
        if not before and "" in self._by_hand:  # chosen before there was a volume: for the first one
            self._by_hand.setdefault(case.id, self._by_hand.pop(""))
        if case.id in self._by_hand:
            self.reason = ""
            self._select(self._by_hand[case.id])
            return
        fitting = [fit.card.name for fit in fits_of(self._cards.values(), case, cases) if fit.is_usable]
        self.reason = "" if fitting else _why_none(case, self._cards.values())
        self._select(self._latest if self._latest in fitting else next(iter(fitting), ""))
        self._on_chosen()

    def keep_for(self, case: ImageVolume) -> None:
        """Keep the chosen model for another volume, which became its first channel."""
        self._case = case.id
        if self.card is not None:
            self._by_hand[case.id] = self.card.name

    def _select(self, name: str) -> None:
        rows = [self.list.item(i).data(Qt.ItemDataRole.UserRole) for i in range(self.list.count())]
        self.list.setCurrentRow(rows.index(name) if name in rows else -1)

    def _settle(self) -> None:
        """Record that the user chooses the model for this volume."""
        self.reason = ""
        self._by_hand[self._case] = self._latest = self.card.name if self.card else ""

    def eventFilter(self, watched: QObject | None, event: QEvent | None) -> bool:
        """Notice that the user chooses in the list, by mouse or by key."""
        pressed = event is not None and event.type() == QEvent.Type.MouseButtonPress
        if isinstance(event, QKeyEvent) and event.type() == QEvent.Type.KeyPress:
            pressed = event.key() not in (Qt.Key.Key_Tab, Qt.Key.Key_Backtab)
        if pressed and self._case not in self._by_hand:
            self._settle()
            self.chosen.emit()
        return False

    def _on_search(self, text: str) -> None:
        words = text.casefold().split()
        for i in range(self.list.count()):
            item = self.list.item(i)
            name = item.data(Qt.ItemDataRole.UserRole)
            text = _search_text(self._cards.get(name) or self._published[name])
            item.setHidden(not all(word in text for word in words))
        shown = [i for i in range(self.list.count()) if not self.list.item(i).isHidden()]
        if words and shown and self.list.currentRow() not in shown:
            self.list.setCurrentRow(shown[0])
        self._on_chosen()

    def _on_chosen(self) -> None:
        card = self.card
        if card is not None and self._case in self._by_hand:
            self._by_hand[self._case] = self._latest = card.name
        offer = self.offer
        nothing = NOT_FOUND if self.search.text().strip() else NOT_CHOSEN
        self.facts.setText(facts_of(card) if card else _offer_of(offer) if offer else nothing)
        self.download.setVisible(offer is not None)
        self.rest.setText(all_of(card) if card else "")
        with QSignalBlocker(self.accept):
            self.accept.setChecked(False)
        self.accept.setVisible(bool(self.terms))
        self.chosen.emit()

    def _on_accepted(self, yes: bool) -> None:
        if yes and self.card is not None:
            remember_terms(self.card)
            self.accept.hide()
            self.chosen.emit()

    def _on_download(self) -> None:
        if self.offer is None:
            return
        dialog = DownloadDialog(self.offer, self.window())
        dialog.accepted.connect(lambda: self._on_downloaded(dialog))
        dialog.finished.connect(dialog.deleteLater)
        dialog.open()

    def _on_downloaded(self, dialog: DownloadDialog) -> None:
        """List the model that was downloaded, and choose it: that is why it was."""
        self.refresh()
        if dialog.card is not None:
            self.choose(dialog.card.name)


def _why_none(case: ImageVolume, cards: Iterable[ModelCard]) -> str:
    modality = modality_of(case.meta)
    if modality and all(card.modality != modality for card in cards):
        return f"No model here was trained on {modality}, which “{case.name}” is, so none is chosen."
    return f"No model here fits “{case.name}”, so none is chosen. Click a model to see what does not fit."


def _search_text(model: ModelCard | PublishedModel) -> str:
    structures = (model.segments,) if isinstance(model, PublishedModel) else tuple(model.labels.values())
    return " ".join((model.name, model.title, model.modality, model.body_part, model.licence, *structures)).casefold()


def _offer_of(model: PublishedModel) -> str:
    """Return what a published model is, and that it is not here yet, as rich text of a few lines."""
    lines = {
        "Segments": model.segments, "For": ", ".join(part for part in (model.modality, model.body_part) if part),
        "Licence": model.licence, "Limits": model.limits,
        "Not on this machine": f"{model.size / 1e6:.1f} MB from {model.hosts[0]}. Nothing is fetched before you agree.",
    }  # fmt: skip
    return "<br>".join(f"<b>{what}</b> {escape(text)}" for what, text in lines.items() if text)


def facts_of(card: ModelCard) -> str:
    """Return what a card says and everybody must know, as rich text of a few lines."""
    dice = card.scores.get("labels", {}) if card.n_scored else {}  # never without the number of patients behind it
    classes = ", ".join(
        f"{_words(name)} {dice[name]:.2f}" if name in dice else _words(name) for name in card.labels.values()
    )
    measured = f"on {card.scored_on}" if card.n_scored else "never measured on held-out cases"
    about = " · ".join(part for part in (card.modality, card.body_part, _spacing(card)) if part)
    lines = [
        f"<b>Segments</b> {escape(classes)}",
        f"<b>Dice</b> {'above, ' if dice else ''}{escape(measured)}",
        f"<b>For</b> {escape(about)} &nbsp; <b>Licence</b> {escape(card.licence or 'not stated')}",
    ]
    if card.restriction:
        lines.append(f"<b>Restriction</b> {escape(card.restriction)}")
    if card.limits:
        first = card.limits.split(". ")[0].rstrip(".")
        lines.append(f"<b>Limits</b> {escape(first)}{'.' if first == card.limits.rstrip('.') else '. …'}")
    return "<br>".join(lines)


def all_of(card: ModelCard) -> str:
    """Return the rest of a card, as rich text."""
    facts = {
        "Limits": card.limits,
        "Trained on": card.trained_on,
        "On held-out patients": "" if card.validation is None else f"Dice {card.validation.overall}",
        "By group": "; ".join(f"{name} {one}" for name, one in card.validation.groups.items())
        if card.validation
        else "",
        "Half precision": str(card.half_precision or ""),
        "Citation": card.citation,
        "Name": f"{card.name}, version {card.version}" + (f", from {card.parent}" if card.parent else ""),
    }
    return "<br>".join(f"<b>{title}</b> {escape(text)}" for title, text in facts.items() if text)


def _words(name: str) -> str:
    return name.replace("_", " ")


def _spacing(card: ModelCard) -> str:
    return f"about {' x '.join(f'{s:.3g}' for s in card.spacing_mm)} mm" if card.spacing_mm else ""

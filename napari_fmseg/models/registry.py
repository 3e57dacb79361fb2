"""The list of models: cards by name, from the package and from the user's folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from napari_fmseg.core.errors import UnknownModel
from napari_fmseg.core.package import data_folder
from napari_fmseg.models.card import ModelCard, read_card
from napari_fmseg.models.folders import _card_folders

__all__ = ["GENERAL_START", "find_card", "list_models"]

GENERAL_START = "general-start"
"""What trainings start from where nothing nearer is known; in no list, since nobody wants to segment with it."""


def list_models() -> tuple[ModelCard, ...]:
    """List the cards of all shipped and own models, by name; a broken card in the user's folder is left out."""
    cards: dict[str, ModelCard] = {}
    for path in _card_paths():
        try:
            card = read_card(path)
        except UnknownModel:
            continue
        cards[card.name] = card
    return tuple(cards[name] for name in sorted(cards))


def _card_paths() -> Iterator[Path]:
    for folder in _card_folders():
        yield from sorted(folder.glob("*.toml"))
        yield from sorted(folder.glob("*/*.toml"))


def find_card(name: str | Path) -> ModelCard:
    """Find a card by the model's name or by the path of its TOML file.

    Raises
    ------
    UnknownModel
        If there is none; names the one that replaces it, or lists those that there are.
    """
    if str(name).endswith(".toml"):
        return read_card(Path(name))
    if str(name) == GENERAL_START:
        return read_card(data_folder("resources") / "starts" / f"{GENERAL_START}.toml")
    cards = {card.name: card for card in list_models()}
    if str(name) not in cards:
        if better := next((card.name for card in cards.values() if str(name) in card.replaces), ""):
            raise UnknownModel(f"There is no model {str(name)!r} any more. {better!r} replaces it: choose that one.")
        raise UnknownModel(
            f"There is no model {str(name)!r}. Choose one of: {', '.join(cards) or 'none is installed'}."
        )
    return cards[str(name)]

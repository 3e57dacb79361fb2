"""Write the table of shipped models into README.md, between its two marks, and docs/models/index.md, from the model cards.

python scripts/models_table.py            prints the table
python scripts/models_table.py --write    writes README.md and docs/models/index.md
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from napari_fmseg.models.card import ModelCard, read_card

ROOT = Path(__file__).parents[1]
START, END = "<!-- models: start -->", "<!-- models: end -->"


def shipped_cards() -> list[ModelCard]:
    """Cards of this repository, not those of the user: first what is in the wheel, then the restricted ones."""
    folders = (ROOT / "resources" / "models", ROOT / "weights" / "research")
    return [read_card(path) for folder in folders for path in sorted(folder.rglob("*.toml"))]


def dice(card: ModelCard) -> str:
    """Tell the Dice of the last stage: the mean, then each class."""
    last = dict(card.scores)["labels"] if "labels" in card.scores else list(card.scores.values())[-1]
    each = ", ".join(f"{name} {value:.2f}" for name, value in last.items() if name != "mean")
    return f"**{sum(last.values()) / len(last):.3f}** ({each})"


def table(cards: Iterable[ModelCard]) -> str:
    """Give the Markdown table."""
    rows = [
        "| Model | Modality | Segments | Dice on cases it has not seen | Licence |",
        "| --- | --- | --- | --- | --- |",
    ]
    for card in cards:
        segments = ", ".join(card.labels.values())
        terms = f"{card.licence}; {card.restriction}" if card.restriction else card.licence
        cells = (
            f"`{card.name}`",
            card.modality,
            segments,
            f"{dice(card)}; {card.scored_on}" if card.scores else "never measured on a case it did not learn from",
            terms,
        )
        rows.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    return "\n".join(rows)


def told(column: Mapping[str, float], name: str) -> str:
    """Write one value, or that there is none."""
    return f"{column[name]:.3f}" if name in column else "-"


def measured(card: ModelCard) -> str:
    """Give the table of a card's scores, or tell that there are none."""
    columns = {f"Dice, {stage}": scores for stage, scores in card.scores.items() if stage != "labels"}
    if not columns:
        return f"Segments {', '.join(card.labels.values())}. Never measured on a case that it did not learn from."
    if card.surface:
        columns[f"Surfaces within {card.surface_mm:g} mm"] = card.surface
    rows = [f"| Class | {' | '.join(columns)} |", f"| --- |{' --- |' * len(columns)}"]
    for name in card.labels.values():
        rows.append(f"| {name} | " + " | ".join(told(column, name) for column in columns.values()) + " |")
    means = (sum(column.values()) / len(column) for column in columns.values())
    return "\n".join([*rows, "| **mean** | " + " | ".join(f"**{mean:.3f}**" for mean in means) + " |"])


def card_page(card: ModelCard, level: str) -> str:
    """Return what a model's card says, under a heading of `level` (``"##"``)."""
    facts = {
        "Modality and region": f"{card.modality}, {card.body_part}",
        "Trained on": card.trained_on,
        "Scored on": card.scored_on,
        "What it cannot do": card.limits,
        "Licence": card.licence,
        "Restriction": card.restriction,
        "Cite": card.citation,
    }
    list_of = "\n".join(f"- **{name}.** {' '.join(text.split())}" for name, text in facts.items() if text)
    return f"{level} {card.title} (`{card.name}`)\n\n{measured(card)}\n\n{list_of}\n"


def page(cards: Iterable[ModelCard]) -> str:
    """Give docs/models/index.md: every card, with Dice by class and stage."""
    parts = [
        "# Models\n\nMade from the model cards by `scripts/models_table.py --write`. Research use only. Not a medical "
        "device.\n\nDice is the mean over cases that were not trained on; each stage was run to the volume's own grid. "
        "The last column is the part of both surfaces (found and true) that lies near the other one. "
        "A model's recipe lies in `resources/recipes` under its name.\n"
    ]
    cards = list(cards)
    names = "\n".join(f"{card.name} <../generated/models/{card.name}>" for card in cards)
    parts.append(f"```{{toctree}}\n:maxdepth: 1\n\n{names}\n```\n")
    parts += [card_page(card, "##") for card in cards]
    return "\n".join(parts)


def written(readme: str) -> str:
    """Give `readme` with the table of today."""
    before, rest = readme.split(START)
    _, after = rest.split(END)
    return f"{before}{START}\n{table(shipped_cards())}\n{END}{after}"


def main(words: list[str]) -> None:
    """Read the command line."""
    if "--write" not in words:
        print(table(shipped_cards()))
        return
    path = ROOT / "README.md"
    path.write_text(written(path.read_text(encoding="utf-8")), encoding="utf-8")
    (ROOT / "docs" / "models" / "index.md").write_text(page(shipped_cards()), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])

"""Write the table of shipped models into README.md, between its two marks, and into docs/models/index.md.

python scripts/models_table.py            prints the table
python scripts/models_table.py --write    writes README.md and docs/models/index.md
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from napari_fmseg.models.card import ModelCard, read_card

ROOT = Path(__file__).parents[1]
START, END = "<!-- models: start -->", "<!-- models: end -->"


def shipped_cards() -> list[ModelCard]:
    """Return the cards of this repository: first those in the wheel, then the restricted ones."""
    folders = (ROOT / "resources" / "models", ROOT / "weights" / "research")
    return [read_card(path) for folder in folders for path in sorted(folder.rglob("*.toml"))]


def dice(card: ModelCard) -> str:
    """Return the mean Dice of the final labels, its 95 % interval, and on which cases it was measured."""
    if card.mean_dice is None:
        return "not measured on cases outside its training data"
    cases = re.split(r",| \(", card.scored_on)[0]  # the page of the model has all of it
    interval = card.validation.overall.interval if card.validation is not None else ""
    return f"**{card.mean_dice:.3f}**{f' ({interval})' if interval else ''} on {cases}"


def table(cards: Iterable[ModelCard], pages: str = "") -> str:
    """Return the Markdown table; with `pages`, a folder with a page per model, each name is a link."""
    rows = ["| Model | Modality | Classes | Mean Dice (95 % interval) | Licence |", "| --- | --- | --- | --- | --- |"]
    for card in cards:
        cells = (
            f"[`{card.name}`]({pages}/{card.name}.md)" if pages else f"`{card.name}`",
            f"{card.modality}, {card.body_part}",
            ", ".join(name.replace("_", " ") for name in card.labels.values()),
            dice(card),
            f"{card.licence}; restricted, see its card" if card.restriction else card.licence,
        )
        rows.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    return "\n".join(rows)


def number(column: Mapping[str, float], name: str) -> str:
    """Return one value as text, or a dash if there is none."""
    return f"{column[name]:.3f}" if name in column else "-"


def scores_table(card: ModelCard) -> str:
    """Return the table of a card's scores, or a sentence if there are none."""
    columns = {f"Dice, {stage}": scores for stage, scores in card.scores.items() if stage != "labels"}
    if not columns:
        classes = ", ".join(name.replace("_", " ") for name in card.labels.values())
        return f"Classes: {classes}. Not measured on cases outside its training data."
    if card.surface:
        columns[f"Surfaces within {card.surface_mm:g} mm"] = card.surface
    rows = [f"| Class | {' | '.join(columns)} |", f"| --- |{' ---: |' * len(columns)}"]
    for name in card.labels.values():
        values = " | ".join(number(column, name) for column in columns.values())
        rows.append(f"| {name.replace('_', ' ')} | {values} |")
    means = (sum(column.values()) / len(column) for column in columns.values())
    return "\n".join([*rows, "| **mean** | " + " | ".join(f"**{mean:.3f}**" for mean in means) + " |"])


def validation_table(card: ModelCard) -> str:
    """Return the table of intervals and worst cases, by class and by group; "" where nobody has measured them."""
    if (found := card.validation) is None:
        return ""
    rows = ["| | Patients | Dice | 95 % interval | Worst case |", "| --- | ---: | ---: | ---: | ---: |"]
    entries = {**found.classes, "**mean of the classes**": found.overall}
    entries |= {f"patients: {name}": accuracy for name, accuracy in found.groups.items()}
    for name, accuracy in entries.items():
        cells = (
            name.replace("_", " "),
            str(accuracy.n_patients),
            f"{accuracy.dice:.3f}",
            accuracy.interval or "-",
            f"{accuracy.worst:.2f} (`{accuracy.worst_case}`)",
        )
        rows.append(f"| {' | '.join(cells)} |")
    note = (
        f"{found.n_cases} volumes, in {found.precision}. The interval is that of the mean over patients (Student's t). "
        "Where the data do not say whose a volume is, each counts as another patient's."
    )
    return "\n".join([*rows, "", note, ""])


def cases_picture(card: ModelCard) -> str:
    """Return the picture of a model's best, median and worst case; "" where there is none."""
    if not (ROOT / "docs" / "images" / "models" / f"{card.name}.jpg").exists():
        return ""
    what = "The best, the median and the worst held-out case: image, true labels, mask of the model"
    return f"![{what}](../../images/models/{card.name}.jpg)\n\n{what}, each in three planes.\n\n"


def card_page(card: ModelCard) -> str:
    """Return the page of a model: scores, facts, and the command that runs it."""
    facts = {
        "Modality and region": f"{card.modality}, {card.body_part}",
        "Input channels": ", ".join(card.channels),
        "Pipeline": f"`{card.pipeline}`: " + ", ".join(f"{name} (`{net.network}`)" for name, net in card.nets.items()),
        "Training data": card.trained_on,
        "Scored on": card.scored_on,
        "Half precision": str(card.half_precision or ""),
        "Limits": card.limits,
        "Licence": card.licence,
        "Restriction": card.restriction,
        "Citation": card.citation,
    }
    list_of = "\n".join(f"- **{name}.** {' '.join(text.split())}" for name, text in facts.items() if text)
    inputs = " ".join(f"{name.lower()}.nii.gz" for name in card.channels) if len(card.channels) > 1 else "scan.nii.gz"
    return (
        f"# `{card.name}`\n\n**{card.title}.** Research use only, not a medical device.\n\n"
        f"```bash\nfmseg segment {inputs} --model {card.name} --output mask.nii.gz\n```\n\n"
        f"## Scores\n\n{scores_table(card)}\n\n{validation_table(card)}\n{cases_picture(card)}## Card\n\n{list_of}\n"
    )


def page(cards: Iterable[ModelCard]) -> str:
    """Return docs/models/index.md: the table of all models, with a link to the page of each."""
    cards, folder = list(cards), "../generated/models"
    names = "\n".join(f"{card.name} <{folder}/{card.name}>" for card in cards)
    return (
        "# Models\n\n**Research use only, not a medical device.** The models are small and were trained on few cases: "
        "inspect every result.\n\nThis page and the pages of the models are generated from the model cards "
        "(`scripts/models_table.py`).\n\n"
        f"{table(cards, folder)}\n\n"
        "- **Dice** is the mean over the classes and over cases that were not used for training. The page of each "
        "model has it by class and stage, and states whether these cases also chose the best epoch, which makes the "
        "figure slightly optimistic. Each stage was resampled to the volume's own grid for measuring.\n"
        "- **Surfaces within 2 mm** (on the pages of the models) is the share of both surfaces, predicted and true, "
        "that is within this distance of the other one (normalised surface Dice, NSD).\n"
        "- The recipe of a model is in `resources/recipes` under its name; `fmseg train` repeats the training.\n\n"
        f"```{{toctree}}\n:hidden:\n:maxdepth: 1\n\n{names}\n```\n"
    )


def update_readme(readme: str) -> str:
    """Return `readme` with the current table."""
    before, rest = readme.split(START)
    _, after = rest.split(END)
    return f"{before}{START}\n{table(shipped_cards())}\n{END}{after}"


def main(arguments: list[str]) -> None:
    """Print or write the table."""
    if "--write" not in arguments:
        print(table(shipped_cards()))
        return
    path = ROOT / "README.md"
    path.write_text(update_readme(path.read_text(encoding="utf-8")), encoding="utf-8")
    (ROOT / "docs" / "models" / "index.md").write_text(page(shipped_cards()), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])

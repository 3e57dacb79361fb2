"""Write the tables of docs/reference/recipes.md from the dataclasses, so that the page cannot go stale.

Run ``python docs/make_recipes.py`` after a field has changed; tests/training/test_recipe.py checks that it was.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from pathlib import Path

from napari_fmseg.datasets.case import Case
from napari_fmseg.models.card import Intensity
from napari_fmseg.models.settings import CoarseFineSettings, PhasedSettings
from napari_fmseg.training.recipe import Augment, Recipe, Replay, StageRecipe

PAGE = Path(__file__).parent / "reference" / "recipes.md"
CLASSES = {
    c.__name__: c for c in (Recipe, StageRecipe, Augment, Intensity, PhasedSettings, CoarseFineSettings, Case, Replay)
}
BLOCK = re.compile(r"(<!-- fields of (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def said(kind: type) -> dict[str, str]:
    """What the docstring says of each field; fields that share an entry share the text."""
    told: dict[str, str] = {}
    part = inspect.getdoc(kind).partition("----------\n")[2]
    for names, text in re.findall(r"^(\w[\w, ]*)\n((?:    .*\n?|\n)+)", part, re.MULTILINE):
        plain = " ".join(text.split()).replace("``", "`").replace("|", "\\|")
        told.update(dict.fromkeys(names.split(", "), plain))
    return told


def default_of(field: dataclasses.Field) -> str:
    """The default as TOML writes it."""
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
        return "see below" if dataclasses.is_dataclass(value) else "`{}`"
    if field.default is dataclasses.MISSING:
        return "needed"
    return toml(field.default)


def toml(value: object) -> str:
    """A plain value, in code quotes."""
    if value is None:
        return "none"
    if isinstance(value, tuple):
        return f"`{list(value)}`"
    return f'`"{value}"`' if isinstance(value, str) else f"`{str(value).lower()}`"


def table(kind: type) -> str:
    """One row per field: name, default, meaning."""
    told = said(kind)
    rows = [f"| `{f.name}` | {default_of(f)} | {told[f.name]} |" for f in dataclasses.fields(kind)]
    return "\n".join(["| field | default | meaning |", "| --- | --- | --- |", *rows]) + "\n"


def filled(text: str) -> str:
    """The page with all tables made anew."""
    return BLOCK.sub(lambda found: found[1] + table(CLASSES[found[2]]) + found[3], text)


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(filled(text), encoding="utf-8")
    sys.exit(0)

"""Write the pages that follow from code and data: command line, API, models, errors, picture of the architecture.

    python docs/generate.py        writes docs/generated/, which git ignores; `scripts/docs` does it before each build
"""

from __future__ import annotations

import contextlib
import html
import inspect
import io
import os
import re
import shutil
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import grimp

import napari_fmseg
from napari_fmseg.cli.main import COMMANDS, main
from napari_fmseg.cli.models import MODEL_COMMANDS
from napari_fmseg.cli.projects import PROJECT_COMMANDS
from napari_fmseg.core import errors

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "scripts"))

import models_table  # noqa: E402

API = {
    "Volumes and label maps": ("core.volume", "core.resampling"),
    "Events of long work": ("core.events",),
    "Files": ("io", "io.export"),
    "Models": ("models.card", "models.registry", "models.weights"),
    "Segmentation": ("pipelines",),
    "Networks": ("nets",),
    "Training": ("training.loop", "training.recipe"),
    "Projects": ("datasets.project", "datasets.case"),
    "Evaluation": ("evaluation.metrics", "evaluation.lesion_metrics", "evaluation.lesions", "evaluation.evaluate"),
    "Explanations": ("explain.gradcam", "explain.uncertainty"),
    "Errors": ("core.errors",),
}


def write_pages(folder: Path) -> None:
    """Write every generated page below `folder`, which is emptied first."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, text in _pages():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def _pages() -> Iterator[tuple[str, str]]:
    yield "cli.md", command_line_page()
    yield from _api_pages()
    yield from _model_pages()
    yield from _error_pages()
    yield "architecture.svg", architecture_picture()


# ---- command line


def command_line_page() -> str:
    """Return every command with its own help text."""
    parts = [
        "# Command line\n\n`fmseg COMMAND --help` prints the same. Exit codes: 0 success, 1 the input, 2 the arguments, "
        "3 the machine (device, memory, disk), 70 a defect of the program, 130 stopped.\n"
    ]
    groups: Mapping[str, Mapping[str, Callable[..., int]]] = {
        "fmseg": {name: call for name, call in COMMANDS.items() if name != "project"},
        "fmseg models": MODEL_COMMANDS,
        "fmseg project": PROJECT_COMMANDS,
    }
    for prefix, commands in groups.items():
        for name in commands:
            words = [*prefix.split()[1:], name]
            parts.append(f"## `{prefix} {name}`\n\n```text\n{_help(words)}\n```\n")
    return "\n".join(parts)


def _help(words: list[str]) -> str:
    told = io.StringIO()
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "100"
    try:
        with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
            main([*words, "--help"])
    finally:
        os.environ.pop("COLUMNS") if before is None else os.environ.update(COLUMNS=before)
    return re.sub(r"\x1b\[[0-9;]*m", "", told.getvalue()).strip()


# ---- API


def _api_pages() -> Iterator[tuple[str, str]]:
    names = "\n".join(f"- `fm.{name}`" for name in napari_fmseg.__all__ if not name.startswith("_"))
    pages = []
    for title, modules in API.items():
        name = re.sub(r"\W+", "_", title.lower())
        pages.append(name)
        blocks = "\n\n".join(
            f"```{{eval-rst}}\n.. automodule:: napari_fmseg.{module}\n   :members:\n```" for module in modules
        )
        yield f"api/{name}.md", f"# {title}\n\n{blocks}\n"
    listed = "\n".join(pages)
    yield (
        "api/index.md",
        f"# Python\n\n`import napari_fmseg as fm` offers these names; importing it costs nothing, since each loads its module "
        f"at first use:\n\n{names}\n\n```{{toctree}}\n:maxdepth: 1\n\n{listed}\n```\n",
    )


# ---- models


def _model_pages() -> Iterator[tuple[str, str]]:
    for card in models_table.shipped_cards():
        yield f"models/{card.name}.md", models_table.card_page(card, "#")


# ---- errors


def _error_pages() -> Iterator[tuple[str, str]]:
    explanations = tomllib.loads((ROOT / "docs" / "errors.toml").read_text(encoding="utf-8"))
    names = [name for name in errors.__all__ if name != "FmsegError"]
    missing, surplus = set(names) - set(explanations), set(explanations) - set(names)
    if missing or surplus:
        raise SystemExit(f"docs/errors.toml: missing {sorted(missing)}, unknown {sorted(surplus)}")
    for name in names:
        text = explanations[name]
        code = getattr(errors, name).exit_code
        about = inspect.getdoc(getattr(errors, name)) or ""
        yield (
            f"errors/{name}.md",
            f"# {name}\n\n{about}\n\nExit code of `fmseg`: {code}.\n\n## Common causes\n\n{text['causes'].strip()}\n\n"
            f"## What to do\n\n{text['what_to_do'].strip()}\n",
        )


# ---- architecture


def architecture_picture() -> str:
    """Return an SVG: the packages on their import layers, the number of imports beside each arrow."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contract = next(c for c in settings["tool"]["importlinter"]["contracts"] if c["type"] == "layers")
    layers = [[name.strip(" ()") for name in layer.split("|")] for layer in contract["layers"]]
    graph = grimp.build_graph("napari_fmseg", exclude_type_checking_imports=True)
    counts: dict[tuple[str, str], int] = {}
    sizes: dict[str, int] = {}
    for module in graph.modules:
        home = _package(module)
        sizes[home] = sizes.get(home, 0) + 1
        for imported in graph.find_modules_directly_imported_by(module):
            pair = (home, _package(imported))
            if pair[0] != pair[1] and all(pair):
                counts[pair] = counts.get(pair, 0) + 1
    layers = [[name for name in layer if name != "__main__"] for layer in layers]
    wide, high, gap = 190, 44, 46
    place = {}
    for row, layer in enumerate(layers):
        for column, name in enumerate(layer):
            x = 420 + (column - (len(layer) - 1) / 2) * (wide + 60)
            place[name] = (x, 40 + row * (high + gap))
    total = 40 + len(layers) * (high + gap)
    lines, boxes = [], []
    for (upper, lower), n in sorted(counts.items()):
        if upper in place and lower in place:
            (x1, y1), (x2, y2) = place[upper], place[lower]
            bend = 0 if abs(x1 - x2) > 5 or y2 - y1 < high + gap + 5 else 150 + (y2 - y1) * 0.35
            path = f"M {x1} {y1 + high} C {x1 - bend} {y1 + high + 30}, {x2 - bend} {y2 - 30}, {x2} {y2 - 4}"
            lines.append(
                f'<path d="{path}" fill="none" stroke="#7a8a94" stroke-width="{min(0.6 + n / 25, 4):.1f}" '
                f'opacity="0.55" marker-end="url(#tip)"><title>{upper} imports {lower}: {n}</title></path>'
            )
    for name, (x, y) in place.items():
        boxes.append(
            f'<rect x="{x - wide / 2}" y="{y}" width="{wide}" height="{high}" rx="7" fill="#e3f1f7" stroke="#00658c"/>'
            f'<text x="{x}" y="{y + 20}" text-anchor="middle" font-weight="600">{html.escape(name)}</text>'
            f'<text x="{x}" y="{y + 36}" text-anchor="middle" font-size="11">{sizes.get(name, 0)} modules</text>'
        )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 840 {total}" font-family="sans-serif" font-size="14">'
        '<defs><marker id="tip" markerWidth="7" markerHeight="7" refX="6" refY="3.5" orient="auto">'
        '<path d="M0 0 L7 3.5 L0 7 z" fill="#7a8a94"/></marker></defs>'
        f'<rect width="840" height="{total}" fill="#ffffff"/>{"".join(lines)}{"".join(boxes)}</svg>\n'
    )


def _package(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


if __name__ == "__main__":
    write_pages(ROOT / "docs" / "generated")

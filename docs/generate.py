"""Write the pages that follow from code and data: command line, API, models, errors, packages and their imports.

``python docs/generate.py`` writes docs/generated/, which git ignores; `scripts/docs` does it before each build.
"""

from __future__ import annotations

import contextlib
import html
import inspect
import io
import math
import os
import re
import shutil
import sys
import textwrap
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

import grimp

import napari_fmseg
from napari_fmseg.cli.datasets import DATASET_COMMANDS
from napari_fmseg.cli.folders.slurm import CLUSTER_COMMANDS
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
    "Projects": ("datasets.projects.project", "datasets.case"),
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
    layers, packages = package_graph()
    yield "architecture.svg", architecture_picture(layers, packages)
    yield "packages.md", packages_table(layers, packages)


# ---- command line


def command_groups() -> Mapping[str, Mapping[str, Callable[..., int]]]:
    """Return the commands by the words before them."""
    return {
        "fmseg": {name: one.load() for name, one in COMMANDS.items() if name not in ("project", "datasets", "cluster")},
        "fmseg models": MODEL_COMMANDS,
        "fmseg datasets": DATASET_COMMANDS,
        "fmseg project": PROJECT_COMMANDS,
        "fmseg cluster": CLUSTER_COMMANDS,
    }


def command_line_page() -> str:
    """Return a table of all commands, then each with its own help text."""
    rows, sections = [], []
    for prefix, commands in command_groups().items():
        for name, call in commands.items():
            anchor = f"{prefix} {name}".replace(" ", "-")
            summary = (inspect.getdoc(call) or "").partition("\n")[0]
            rows.append(f"| [`{prefix} {name}`](#{anchor}) | {summary.replace('|', '&#124;')} |")
            words = [*prefix.split()[1:], name]
            sections.append(f"## `{prefix} {name}`\n\n```text\n{_help(words)}\n```\n")
    return (
        "# Command line\n\n`fmseg COMMAND --help` prints the text of this page. Exit codes: 0 success, 1 a problem "
        "with the input, 2 wrong arguments, 3 a problem with the machine (device, memory, disk), 70 a defect of the "
        "program, 130 stopped.\n\n"
        "| Command | Purpose |\n| --- | --- |\n" + "\n".join(rows) + "\n\n" + "\n".join(sections)
    )


def _help(words: list[str]) -> str:
    """Return the help text of a command, 84 characters wide, without colours and rules."""
    printed = io.StringIO()
    columns = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "84"
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            main([*words, "--help"])
    finally:
        os.environ.pop("COLUMNS") if columns is None else os.environ.update(COLUMNS=columns)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", printed.getvalue())
    lines = (line.rstrip() for line in plain.replace("``", "").splitlines() if not re.fullmatch(r"\s*-{20,}\s*", line))
    wrapped = "\n".join(line if line.startswith(" ") else textwrap.fill(line, 84) for line in lines)
    return re.sub(r"\n{3,}", "\n\n", wrapped).strip()


# ---- API


def _api_pages() -> Iterator[tuple[str, str]]:
    rows = "\n".join(f"| `fm.{name}` | {_summary(name)} |" for name in napari_fmseg.__all__ if not name.startswith("_"))
    pages = []
    for title, modules in API.items():
        name = re.sub(r"\W+", "_", title.lower())
        pages.append(name)
        blocks = "\n\n".join(
            f"## `napari_fmseg.{module}`\n\n```{{eval-rst}}\n.. automodule:: napari_fmseg.{module}\n   :members:\n```"
            for module in modules
        )
        yield f"api/{name}.md", f"# {title}\n\n{blocks}\n"
    listed = "\n".join(pages)
    yield (
        "api/index.md",
        "# Python\n\n`import napari_fmseg as fm` offers these names; each loads its module at first use, so that the "
        f"import is fast.\n\n| Name | Purpose |\n| --- | --- |\n{rows}\n\n## All modules by subject\n\n"
        f"```{{toctree}}\n:maxdepth: 1\n\n{listed}\n```\n",
    )


def _summary(name: str) -> str:
    """Return the first line of the docstring of a public name, as Markdown."""
    first = (inspect.getdoc(getattr(napari_fmseg, name)) or "").partition("\n")[0]
    return first.replace("``", "`").replace("|", "&#124;")


# ---- models


def _model_pages() -> Iterator[tuple[str, str]]:
    for card in models_table.shipped_cards():
        yield f"models/{card.name}.md", models_table.card_page(card)


# ---- errors


def _error_pages() -> Iterator[tuple[str, str]]:
    explanations = tomllib.loads((ROOT / "docs" / "errors.toml").read_text(encoding="utf-8"))
    names = [name for name in errors.__all__ if name != "FmsegError"]
    missing, surplus = set(names) - set(explanations), set(explanations) - set(names)
    if missing or surplus:
        raise SystemExit(f"docs/errors.toml: missing {sorted(missing)}, unknown {sorted(surplus)}")
    rows = "\n".join(f"| [{name}](../generated/errors/{name}.md) | {explanations[name]['meaning']} |" for name in names)
    yield "errors_table.md", f"| Error | Meaning |\n| --- | --- |\n{rows}\n"  # included in docs/reference/errors.md
    for name in names:
        text = explanations[name]
        code = getattr(errors, name).exit_code
        about = inspect.getdoc(getattr(errors, name)) or ""
        yield (
            f"errors/{name}.md",
            f"# {name}\n\n{about}\n\nExit code of `fmseg`: {code}. In Python: `fm.errors.{name}`.\n\n"
            f"## Common causes\n\n{text['causes'].strip()}\n\n"
            f"## What to do\n\n{text['what_to_do'].strip()}\n",
        )


# ---- architecture


@dataclass
class Package:
    """One package: what it holds, how many modules, and how many imports it has of each other package."""

    about: str = ""
    modules: int = 0
    imports: dict[str, int] = field(default_factory=dict)


def package_graph() -> tuple[list[list[str]], dict[str, Package]]:
    """Return the import layers of pyproject.toml, top first, and the packages with the imports between them."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contract = next(c for c in settings["tool"]["importlinter"]["contracts"] if c["type"] == "layers")
    layers = [[name.strip() for name in layer.split("|") if "(" not in name] for layer in contract["layers"]]
    packages = {name: Package() for layer in layers for name in layer}
    graph = grimp.build_graph("napari_fmseg", exclude_type_checking_imports=True)
    for module in graph.modules:
        home = packages.get(_package(module))
        if home is None:
            continue
        home.modules += 1
        for imported in map(_package, graph.find_modules_directly_imported_by(module)):
            if imported in packages and packages[imported] is not home:
                home.imports[imported] = home.imports.get(imported, 0) + 1
    for name, package in packages.items():
        docstring = inspect.getdoc(import_module(f"napari_fmseg.{name}")) or ""
        package.about = " ".join(docstring.partition("\n\n")[0].split()).replace("``", "").replace("`", "")
    return layers, packages


def _package(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def packages_table(layers: list[list[str]], packages: Mapping[str, Package]) -> str:
    """Return the table of the packages, highest layer first, with the number of imports from each other one."""
    rows = []
    for name in (name for layer in layers for name in layer):
        package = packages[name]
        imports = ", ".join(f"{other} {n}" for other, n in sorted(package.imports.items(), key=lambda item: -item[1]))
        rows.append(f"| `{name}` | {package.about.replace('|', '&#124;')} | {package.modules} | {imports or '-'} |")
    return "| Package | Content | Modules | Imports from |\n| --- | --- | ---: | --- |\n" + "\n".join(rows) + "\n"


WIDTH, BOX, HIGH, GAP, COLUMN = 760, 300, 88, 42, 190


def architecture_picture(layers: list[list[str]], packages: Mapping[str, Package]) -> str:
    """Return an SVG: the packages on their import layers, and the arrows that no other path of arrows implies."""
    place: dict[str, tuple[float, int]] = {}
    for row, layer in enumerate(layers):
        for i, name in enumerate(layer):
            place[name] = (WIDTH / 2 + (i - (len(layer) - 1) / 2) * 2 * COLUMN, row)
    arrows = [
        f'<path class="arrow" d="{_route(place[name], place[other], layers)}" marker-end="url(#arrow-tip)">'
        f"<title>{name} imports {other}: {packages[name].imports[other]}</title></path>"
        for name, other in _direct(packages)
    ]
    boxes = [_box(*place[name], name, packages[name]) for name in place]
    height = len(layers) * (HIGH + GAP) - GAP + 20
    return (
        f'<svg class="architecture" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        'aria-label="The packages of napari_fmseg on their import layers">'
        '<defs><marker id="arrow-tip" markerWidth="9" markerHeight="9" refX="8" refY="4.5" orient="auto" '
        'markerUnits="userSpaceOnUse"><path class="tip" d="M0 0 L9 4.5 L0 9 z"/></marker></defs>'
        f"{''.join(arrows)}{''.join(boxes)}</svg>\n"
    )


def _direct(packages: Mapping[str, Package]) -> list[tuple[str, str]]:
    """Return the imports between packages that do not follow from a chain of others (transitive reduction)."""

    def reached(name: str) -> set[str]:
        return {name}.union(*(reached(other) for other in packages[name].imports))

    return [
        (name, other)
        for name, package in packages.items()
        for other in package.imports
        if not any(other in reached(between) for between in package.imports if between != other)
    ]


def _route(start: tuple[float, int], end: tuple[float, int], layers: list[list[str]]) -> str:
    """Return the path of an arrow, around the boxes of the layers between."""
    (x1, row1), (x2, row2) = start, end
    top, bottom = 10 + row1 * (HIGH + GAP), 10 + row2 * (HIGH + GAP) - 1
    blocked = any(len(layer) % 2 for layer in layers[row1 + 1 : row2])
    if row2 - row1 > 1 and blocked and x1 != x2:  # leave at the side, go down outside of the middle column
        side, x2 = x1 + math.copysign(BOX / 2, x2 - x1), x2 + math.copysign(60, x2 - x1)
        return f"M {side} {top + HIGH / 2} C {x2} {top + HIGH / 2}, {x2} {top + HIGH}, {x2} {bottom}"
    x2 += max(-60.0, min(60.0, (x1 - x2) / 3))
    turn, half = bottom - GAP, GAP / 2  # straight down between the columns, and across just above the lower box
    return f"M {x1} {top + HIGH} L {x1} {turn} C {x1} {turn + half}, {x2} {bottom - half}, {x2} {bottom}"


def _box(x: float, row: int, name: str, package: Package) -> str:
    y = 10 + row * (HIGH + GAP)
    about = textwrap.wrap(package.about, 46)
    lines = about if len(about) <= 3 else [*about[:2], textwrap.shorten(" ".join(about[2:]), 46, placeholder=" …")]
    texts = "".join(
        f'<text class="about" x="{x}" y="{y + 42 + 16 * i}">{html.escape(line)}</text>' for i, line in enumerate(lines)
    )
    return (
        f'<rect x="{x - BOX / 2}" y="{y}" width="{BOX}" height="{HIGH}" rx="7"/>'
        f'<text class="name" x="{x}" y="{y + 23}">{html.escape(name)}'
        f'<tspan class="about"> · {package.modules} modules</tspan></text>{texts}'
    )


if __name__ == "__main__":
    write_pages(ROOT / "docs" / "generated")

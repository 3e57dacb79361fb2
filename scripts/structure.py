"""Print the structure of the package and fail where it has grown over its limits: ``scripts/structure``."""

from __future__ import annotations

import sys
import tomllib
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "napari_fmseg"
MOST_ENTRIES = 14
MOST_MODULES = 16
MOST_LINES = 450
LAYERS = (9, 10)


def main() -> int:
    """Measure, print a table and the offenders.

    Returns
    -------
    int
        0 where every limit holds, else 1.
    """
    modules = [path for path in sorted(PACKAGE.rglob("*.py")) if "__pycache__" not in path.parts]
    entries = [*PACKAGE.glob("*.py"), *(path.parent for path in PACKAGE.glob("*/__init__.py"))]
    folders = {folder: sum(path.parent == folder for path in modules) - 1 for folder in {p.parent for p in modules}}
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in modules}
    layers = _layers()
    graph = grimp.build_graph("napari_fmseg", exclude_type_checking_imports=True)
    upward = graph.find_illegal_dependencies_for_layers(
        layers=[grimp.Layer(*(name.strip(" ()") for name in layer.split("|"))) for layer in layers],
        containers={"napari_fmseg"},
    )
    circle = _circle({name: graph.find_modules_directly_imported_by(name) for name in graph.modules})
    largest, longest = max(folders, key=folders.__getitem__), max(lines, key=lines.__getitem__)
    rows = [
        ("entries of the package root", len(entries), f"<= {MOST_ENTRIES}", len(entries) <= MOST_ENTRIES, ""),
        ("modules in the largest folder", folders[largest], f"<= {MOST_MODULES}", folders[largest] <= MOST_MODULES,
         _name(largest)),
        ("lines of the longest module", lines[longest], f"<= {MOST_LINES}", lines[longest] <= MOST_LINES,
         _name(longest)),
        ("import layers", len(layers), f"{LAYERS[0]} to {LAYERS[1]}", LAYERS[0] <= len(layers) <= LAYERS[1], ""),
        ("import circles", int(bool(circle)), "0", not circle, " -> ".join(circle)),
        ("upward imports", len(upward), "0", not upward, ", ".join(f"{d.importer} -> {d.imported}" for d in upward)),
    ]  # fmt: skip
    for what, found, limit, holds, where in rows:
        print(f"{'ok ' if holds else 'BAD'}  {what:32}{found:>6}  ({limit})  {where}".rstrip())
    print(f"     {len(modules)} modules, {sum(lines.values())} lines in napari_fmseg/")
    return 0 if all(row[3] for row in rows) else 1


def _layers() -> list[str]:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    return list(next(contract["layers"] for contract in contracts if contract["type"] == "layers"))


def _circle(imports: dict[str, set[str]]) -> list[str]:
    """Return the modules of one import circle in order; an empty list where there is none."""
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


if __name__ == "__main__":
    sys.exit(main())

"""The documentation: its commands, its Python and its links, compared with the program and the files."""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import importlib.util
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote

import pytest
import tyro

from napari_fmseg.cli.datasets import DATASET_COMMANDS
from napari_fmseg.cli.folders.slurm import CLUSTER_COMMANDS, split_slurm
from napari_fmseg.cli.main import COMMANDS
from napari_fmseg.cli.models import MODEL_COMMANDS
from napari_fmseg.cli.projects import PROJECT_COMMANDS
from napari_fmseg.models.settings import CoarseFineSettings

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "weights/README.md")),
    *sorted(path for path in (ROOT / "docs").rglob("*.md") if "generated" not in path.relative_to(ROOT).parts),
]
GENERATED = ROOT / "docs" / "generated"


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, *languages: str) -> Iterator[str]:
    """Yield the code blocks of a page in one of the languages."""
    for language, code in re.findall(
        r"^```(\w+)\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    ):
        if language in languages:
            yield code


def commands(code: str) -> Iterator[list[str]]:
    """Yield the words of every fmseg command of a block, without the comments."""
    for line in code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["fmseg"]:
            yield words[1:]
        elif "napari_fmseg" in words:  # torchrun ... -m napari_fmseg ...
            yield words[words.index("napari_fmseg") + 1 :]


def every_command() -> Iterator[tuple[str, list[str]]]:
    for page in PAGES:
        for code in blocks(page, "bash", "sh"):
            for words in commands(code):
                yield name_of(page), words
        for code in re.findall(r"`(fmseg [^`\n]+ [^`\n]*)`", page.read_text(encoding="utf-8")):  # inside a sentence
            if "--" in code and not re.search(r"\b(RESULT|COMMAND)\b", code):
                yield name_of(page), shlex.split(code)[1:]


def parse(words: list[str]) -> None:
    """Parse a command as the command line does, without running it."""
    if words[:2] == ["cluster", "slurm"]:
        split_slurm(words[2:])
        return
    group: dict[str, Callable[..., int]] = {name: command.load() for name, command in COMMANDS.items()}
    prog = "fmseg"
    if words[:1] == ["project"] and len(words) > 1:
        group, prog, words = PROJECT_COMMANDS, "fmseg project", words[1:]
    elif words[:1] == ["datasets"] and len(words) > 1:
        group, prog, words = DATASET_COMMANDS, "fmseg datasets", words[1:]
    elif words[:1] == ["models"] and words[1:2] and words[1] in MODEL_COMMANDS:
        group, prog, words = MODEL_COMMANDS, "fmseg models", words[1:]
    if not words or words[0] not in group:
        pytest.fail(f"{prog} has no command {' '.join(words[:1])}")
    function = group[words[0]]

    @functools.wraps(function)  # tyro reads its parameters, annotations and docstring
    def stand_in(*_values: object, **_options: object) -> int:
        return len(words)

    parsed = tyro.cli(stand_in, prog=f"{prog} {words[0]}", args=words[1:], config=(tyro.conf.FlagCreatePairsOff,))
    assert parsed == len(words)


def words_as_text(value: str | list[str]) -> str:
    return value if isinstance(value, str) else " ".join(value)


@pytest.mark.parametrize(("page", "words"), list(every_command()), ids=words_as_text)
def test_the_command_line_takes_every_documented_command(page: str, words: list[str]) -> None:
    try:
        parse(words)
    except SystemExit as stop:
        pytest.fail(f"{page}: fmseg {' '.join(words)} (exit code {stop.code})")


def test_a_command_that_does_not_exist_would_be_noticed() -> None:
    with pytest.raises(SystemExit):
        parse(["segment", "scan.nii.gz", "--model", "m", "--output", "mask.nii.gz", "--no-such-option"])
    with pytest.raises(pytest.fail.Exception):
        parse(["project", "no-such-command", "folder"])


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_documented_python_block_compiles(page: Path) -> None:
    for code in blocks(page, "python", "py"):
        compile(code, name_of(page), "exec")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_documented_import_exists(page: Path) -> None:
    for code in blocks(page, "python", "py"):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("napari_fmseg"):
                module = importlib.import_module(node.module or "")
                assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_documented_module_exists(page: Path) -> None:
    for name in re.findall(r"`(napari_fmseg(?:\.\w+)+)", page.read_text(encoding="utf-8")):
        assert dotted_name_exists(name), name


def dotted_name_exists(name: str) -> bool:
    """Whether a name is a module, or something that a module holds."""
    parts = name.split(".")
    for n in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:n]))
        except ModuleNotFoundError:
            continue
        for part in parts[n:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


def test_the_settings_in_the_guide_to_coarse_to_fine_models_are_all_settings() -> None:
    page = (ROOT / "docs" / "how_to" / "coarse_fine.md").read_text(encoding="utf-8")
    table = page.partition("| Setting |")[2].partition("\n\n")[0]
    documented = {name for row in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert documented == {field.name for field in dataclasses.fields(CoarseFineSettings)}


@pytest.fixture(scope="module")
def generator() -> Iterator[ModuleType]:
    """Load docs/generate.py, which needs the packages of the documentation."""
    pytest.importorskip("grimp")
    spec = importlib.util.spec_from_file_location("generate_docs", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    path, sys.modules[spec.name] = list(sys.path), module  # its dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    sys.path[:] = path
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def generated(generator: ModuleType) -> dict[str, str]:
    return dict(generator._pages())


def anchors_of(text: str) -> set[str]:
    """Return the anchors of the headings, as GitHub and MyST make them."""
    without_code = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    slugs = set()
    for heading in re.findall(r"^#+ (.+)$", without_code, re.MULTILINE):
        plain = re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        slugs.add(re.sub(r"[^\w\- ]", "", plain).replace(" ", "-"))
    return slugs


def test_every_internal_link_leads_somewhere(generated: dict[str, str]) -> None:
    texts = {page: page.read_text(encoding="utf-8") for page in PAGES}
    texts |= {GENERATED / name: text for name, text in generated.items() if name.endswith(".md")}
    dead = []
    for page, text in texts.items():
        without_code = re.sub(r"^```.*?^```|`[^`\n]*`", "", text, flags=re.MULTILINE | re.DOTALL)
        for target in re.findall(r"\]\(([^)\s]+)\)", without_code):
            path, _, anchor = unquote(target).partition("#")
            if re.match(r"\w+:", target):
                continue
            file = page if not path else (page.parent / path).resolve()
            there = file in texts or (file.exists() and GENERATED not in file.parents)
            if not there or (anchor and file in texts and anchor not in anchors_of(texts[file])):
                dead.append(f"{name_of(page)}: {target}")
    assert dead == []


def test_every_page_is_in_a_table_of_contents(generated: dict[str, str]) -> None:
    sources = {
        page: page.read_text(encoding="utf-8")
        for page in (ROOT / "docs").rglob("*.md")
        if GENERATED not in page.parents
    }
    sources |= {GENERATED / name: text for name, text in generated.items() if name.endswith(".md")}
    listed = {ROOT / "docs" / "index.md", GENERATED / "packages.md", GENERATED / "errors_table.md"}
    for page, text in sources.items():
        for tree in re.findall(r"^```\{toctree\}\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            for line in tree.splitlines():
                target = re.sub(r".*<(.*)>", r"\1", line).strip()
                if target.endswith("*"):
                    folder = (page.parent / target).resolve().parent
                    listed |= {other for other in sources if other.parent == folder}
                elif target and not target.startswith(":"):
                    listed.add((page.parent / f"{target.removesuffix('.md')}.md").resolve())
    assert sources.keys() - listed == set()


def test_the_command_line_page_has_every_command(generated: dict[str, str]) -> None:
    groups = {
        "fmseg": COMMANDS.keys() - {"project", "datasets", "cluster"},
        "fmseg models": MODEL_COMMANDS,
        "fmseg datasets": DATASET_COMMANDS,
        "fmseg project": PROJECT_COMMANDS,
        "fmseg cluster": CLUSTER_COMMANDS,
    }
    for prefix, names in groups.items():
        for name in names:
            assert f"\n## `{prefix} {name}`\n\n```text\nusage: {prefix} {name} " in generated["cli.md"]


def test_the_picture_has_every_package_once(generated: dict[str, str]) -> None:
    picture = generated["architecture.svg"]
    for folder in sorted((ROOT / "napari_fmseg").iterdir()):
        if (folder / "__init__.py").exists():
            assert picture.count(f">{folder.name}<tspan") == 1


@pytest.mark.parametrize("way", ["volume", "recipe"])
def test_each_way_through_the_code_takes_at_most_twelve_modules_and_none_twice(way: str) -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    listed = page.partition(f"<!-- path: {way} -->\n")[2].partition("<!-- end -->")[0].strip().splitlines()
    modules = [re.match(r"\d+\. `([\w.]+)`", line) for line in listed]
    names = [found[1] for found in modules if found]
    assert len(names) == len(listed) <= 12
    assert len(set(names)) == len(names)
    assert all(importlib.util.find_spec(name) for name in names)

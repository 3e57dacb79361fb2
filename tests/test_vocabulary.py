"""Names and docstrings in the field's terms: functions are verbs or nouns, docstrings open with an imperative verb."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "napari_fmseg"
RUFF = (sys.executable, "-m", "ruff")

IRREGULAR = frozenset(
    """begun born bought bound brought built caught chosen come dealt done drawn dug driven eaten fed felt forgotten
    fought found frozen given gone got grown heard held hidden hung hurt kept known laid led left lent lit lost made
    meant met paid risen seen sent shaken shown shut slept sold sought spent spoken stolen stood struck stuck
    swept sworn taken taught thought thrown told said torn understood woken won worn wound written""".split()
)
VERBS_IN_ED = frozenset({"need", "feed", "seed", "speed", "embed", "exceed", "proceed", "shed"})

# An adjective before a noun is a noun phrase, and a property in it names what the object has.
ADJECTIVES = frozenset(
    """_changed_values _changed_windows _chosen _disabled_reason _held_out_in _stated_spacings _stated_units
    _weighted_values cancelled changed_cases changed_slices chosen disabled_reason held_out_sample labelled
    labelled_cases labelled_share leaked_cases left phased_task resized resized_crop signed_distance sorted_slices
    stored_frames ticked unfinished_run unlabelled_images unsaved unused_bits""".split()
)

COLLOQUIAL = ("Give", "Tell", "Say", "Take", "Let", "Look", "See", "Ask", "Whether")


def functions() -> Iterator[tuple[Path, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield path.relative_to(PACKAGE), node


def is_property(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any("property" in ast.unparse(decorator) for decorator in node.decorator_list)


def is_participle(name: str) -> bool:
    word = name.strip("_").split("_")[0]
    return word in IRREGULAR or (re.fullmatch(r"[a-z]+[a-z]ed", word) is not None and word not in VERBS_IN_ED)


@pytest.mark.parametrize(
    ("name", "expected"), [("told", True), ("_stretched", True), ("embed", False), ("read", False), ("resize", False)]
)
def test_a_participle_is_recognised_by_its_form(name: str, expected: bool) -> None:
    assert is_participle(name) == expected


def test_no_function_is_named_by_a_participle() -> None:
    places = [f"{path}:{node.lineno} {node.name}" for path, node in functions() if is_participle(node.name)]
    wrong = [place for place in places if place.split()[-1] not in ADJECTIVES]
    assert not wrong, "rename to a verb or a noun: " + "; ".join(wrong)


def test_no_docstring_of_a_function_opens_with_a_colloquial_verb() -> None:
    opening = re.compile(rf"({'|'.join(COLLOQUIAL)})\b")
    found = {
        f"{path.as_posix()}:{node.name}"
        for path, node in functions()
        if not is_property(node) and opening.match(ast.get_docstring(node) or "")
    }
    assert not found, "open with Return, Read, Write, Compute...: " + "; ".join(sorted(found))


def test_at_least_95_percent_of_the_docstrings_open_with_an_imperative_verb() -> None:
    if importlib.util.find_spec("ruff") is None:
        pytest.skip("ruff is not installed")
    done = subprocess.run(
        [*RUFF, "check", "--isolated", "--select", "D401", "--output-format", "concise", PACKAGE],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stderr
    wrong = done.stdout.count("D401")
    total = sum(ast.get_docstring(node) is not None and not is_property(node) for _, node in functions())
    assert total > 1000
    assert wrong <= 0.05 * total, done.stdout

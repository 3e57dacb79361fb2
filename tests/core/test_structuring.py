"""From files to tables to dataclasses: whatever a file holds, it is read or told in a sentence that names the key."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from napari_fmseg.core.structuring import Range, is_file_name, read_table, structure, wrong_number


@dataclass(frozen=True)
class Inner:
    size: int = 1


@dataclass(frozen=True)
class Outer:
    name: str = ""
    rate: float = 0.0
    inner: Inner = field(default_factory=Inner)
    many: tuple[Inner, ...] = ()
    either: str | tuple[str, ...] | None = None
    by_name: Mapping[str, int | str] = field(default_factory=dict)
    place: Path = Path()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "empty"),
        (b"\0\0\0\0", "empty"),
        (b"\xff\xfe{}", "UTF-8"),
        (b"[1, 2]", "a table was expected"),
        (b"5", "a table was expected"),
        (b"{", "Expecting"),
        (b'{"a": ' * 100_000, "nested too deeply"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "digits"),
        (rb'{"a": ["\ud800"]}', "surrogate"),
    ],
)
def test_a_json_file_that_is_no_table_is_told_in_words(content: bytes, told: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=told):
        read_table(path)


@pytest.mark.parametrize(
    ("content", "told"), [(b"", "empty"), (b"a=" + b"[" * 100_000, "deeply"), (b"\xff", "UTF-8"), (b"a", "Expected")]
)
def test_a_toml_file_that_is_none_is_told_in_words(content: bytes, told: str, tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=told):
        read_table(path, toml=True)


def test_a_byte_order_mark_does_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_table(path) == {"a": 1}
    path.write_bytes(b"\xef\xbb\xbfa = 1")
    assert read_table(path, toml=True) == {"a": 1}


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="needs a device without an end")
def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "x.json").mkdir()
    with pytest.raises(ValueError, match="no file"):
        read_table(tmp_path / "x.json")
    (tmp_path / "y.json").symlink_to("/dev/zero")
    with pytest.raises(ValueError, match="no file"):
        read_table(tmp_path / "y.json")


@pytest.mark.parametrize(
    ("table", "told"),
    [
        (5, "a table"),
        ({"name": 5}, "name cannot be 5; expected text"),
        ({"name": "a\0b"}, "name.*null"),
        ({"rate": math.nan}, "rate.*finite"),
        ({"rate": -math.inf}, "rate.*finite"),
        ({"rate": True}, "rate"),
        ({"rate": 10**400}, "rate.*64 bits"),
        ({"inner": {"size": 2**64}}, r"inner\.size.*64 bits"),
        ({"inner": 5}, "inner cannot be 5"),
        ({"inner": {"size": {}}}, r"inner\.size"),
        ({"many": 5}, "many"),
        ({"many": [{}, {"size": "x"}]}, r"many\[1\]\.size"),
        ({"either": 5}, "either.*text or a list of text"),
        ({"either": ["a", 5]}, r"either\[1\]"),
        ({"by_name": {"a": []}}, r"by_name\.a.*whole number or text"),
        ({"by_name": {"a\0": 1}}, "a key of by_name"),
        ({"place": "a\0"}, "place"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_value_that_cannot_be_is_refused_with_its_key(table: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        structure(Outer, table)


def test_a_message_stays_short_whatever_the_value_is() -> None:
    deep: list[Any] = []
    for _ in range(500):
        deep = [deep]
    for value in ["x" * 10**6, list(range(10**5)), deep]:
        with pytest.raises(ValueError, match="rate") as caught:
            structure(Outer, {"rate": value})
        assert len(str(caught.value)) < 400


def test_fields_of_other_programs_are_passed_over_on_request_only() -> None:
    assert structure(Outer, {"name": "a", "inner": {"other": 1}, "more": 2}, known_only=True) == Outer("a")
    assert math.isnan(structure(Outer, {"rate": math.nan}, finite=False).rate)


def test_ranges_say_what_they_hold() -> None:
    assert [Range(0, 1).holds(v) for v in (0, 1, 0.5, -0.1, math.nan, True, "1", None)] == [True] * 3 + [False] * 5
    assert not Range(0, open="low").holds(0)
    assert not Range(0, 1, open="high").holds(1)
    assert not Range(-math.inf).holds(math.inf)
    assert str(Range(0, 1, open="low")) == "a finite number above 0 and at most 1"
    assert str(Range(-math.inf)) == "a finite number"
    assert (
        wrong_number(Outer(rate=math.nan), {"rate": Range()}, "x.")
        == "x.rate is a finite number of at least 0, not nan"
    )
    assert wrong_number(Inner(), {"size": Range()}) == ""


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/a", "a\\b", "C:x", ".hidden", "a\nb", "a\0"])
def test_what_would_lead_elsewhere_is_no_name_of_a_file(name: str) -> None:
    assert not is_file_name(name)
    assert is_file_name("Leber 2 (β).v1")

"""The documented table of networks: what it says of parameters and multiply-adds is what the code has."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from napari_fmseg.core.errors import MissingExtra
from napari_fmseg.nets import NETWORKS

ROOT = Path(__file__).parents[1]


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import networks_table

    return networks_table


@pytest.fixture
def documented() -> dict[str, list[str]]:
    lines = (ROOT / "docs" / "reference" / "networks.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| `")]
    return {row[0]: row for row in rows}


def test_documented_parameters_and_multiply_adds_are_those_of_the_code(script, documented):
    assert list(documented) == [entry.title for entry in script.ENTRIES]
    for entry in script.ENTRIES:
        try:
            found = script.cells(entry)
        except MissingExtra:
            continue  # MONAI's networks need more than the package itself
        assert documented[entry.title][:3] == found, "run scripts/networks_table.py --write"


def test_every_network_is_documented_with_its_milliseconds(documented):
    assert {f"`{name}`" for name in NETWORKS} <= set(documented)
    assert all(re.fullmatch(r"[\d,]+", row[3]) for row in documented.values())


def test_documented_reconstruction_is_twenty_times_cheaper_than_its_backbone(documented):
    light, heavy = (float(documented[f"`{name}`"][2].removesuffix(" G")) for name in ("ma3dseg", "uxnet3d"))
    assert heavy > 20 * light

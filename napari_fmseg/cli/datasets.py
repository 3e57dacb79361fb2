"""The commands about public data sets: ``fmseg datasets ...``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from napari_fmseg.cli.console import Json, note, say, table, write_json
from napari_fmseg.cli.progress import follow

__all__ = ["DATASET_COMMANDS", "list_"]


def list_(*, as_json: Json = False) -> int:
    """List the public data sets whose own folder layout is known: what each shows, and where to get it."""
    from napari_fmseg.datasets.public import list_public

    found = list_public()
    if as_json:
        write_json([dataclasses.asdict(one) for one in found])
        return 0
    say(table(
        ("NAME", "CASES", "CHANNELS", "SHOWS", "WHERE"),
        [(one.name, str(one.cases), ", ".join(one.channels), one.title, one.source) for one in found],
    ))  # fmt: skip
    say("\nNothing is downloaded: register and download where it says, unpack, then `fmseg datasets prepare`.")
    return 0


def prepare(
    name: Positional[Annotated[str, arg(metavar="NAME")]],
    source: Positional[Annotated[Path, arg(metavar="SOURCE")]],
    destination: Positional[Annotated[Path, arg(metavar="DEST")]],
    /,
    *,
    as_json: Json = False,
) -> int:
    """Arrange a downloaded public data set as nnU-Net's raw layout, by links, and report what is missing or odd.

    Parameters
    ----------
    name
        Of `fmseg datasets list`.
    source
        The folder into which everything was unpacked; it must stay where it is, and is not changed.
    destination
        A new folder for dataset.json, imagesTr and labelsTr. `fmseg train RECIPE --dataset DEST` learns from it.
    """
    from napari_fmseg.datasets.public import find_public, prepare_public

    done = follow(prepare_public(find_public(name), source, destination), quiet=as_json)
    if as_json:
        write_json(dataclasses.asdict(done))
        return 0
    for text in done.remarks:
        note(text)
    for text in done.missing:
        note(f"Missing: {text}")
    say(
        f"{done.folder}: {len(done.training)} training and {len(done.validation)} validation cases of {done.expected}; "
        f"{done.linked} files linked, {done.written} label files written."
    )
    return 0


DATASET_COMMANDS: dict[str, Callable[..., int]] = {"list": list_, "prepare": prepare}

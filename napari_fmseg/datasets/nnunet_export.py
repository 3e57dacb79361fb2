"""A project or a data set as nnU-Net v2 wants it: its folder name, the raw layout, a strict dataset.json."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from napari_fmseg.core.atomic_write import atomic_write
from napari_fmseg.core.errors import FmsegError
from napari_fmseg.datasets.nnunet_json import CaseFiles, DatasetInfo, find_cases, read_facts
from napari_fmseg.io import suffix_of

__all__ = ["export_for_nnunet"]

_FOLDER = re.compile(r"Dataset\d{3}_[A-Za-z0-9_-]+")


def export_for_nnunet(folder: Path | str, out: Path | str) -> Path:
    """Write the labelled cases of a project, and its dataset.json, in the form that nnU-Net v2 plans and trains with.

    Files are copied as they are; nothing in the project changes.

    Parameters
    ----------
    folder
        The project, or another data set in nnU-Net's raw layout.
    out
        A new folder called DatasetNNN_NAME, such as Dataset123_Liver, as nnU-Net wants it.

    Returns
    -------
    Path
        The dataset.json that was written.

    Raises
    ------
    FmsegError
        If the name is none of nnU-Net's, the folder is there already, or cases do not fit the layout.
    """
    folder, out = Path(folder), Path(out)
    if not _FOLDER.fullmatch(out.name):
        raise FmsegError(f"nnU-Net reads folders called DatasetNNN_NAME, such as Dataset123_Liver, not {out.name}.")
    if out.exists():
        raise FmsegError(f"{out} is there already. Choose another name, or remove it.")
    facts = read_facts(folder)
    cases = {name: files for name, files in find_cases(folder, facts).items() if files.labels is not None}
    if not cases:
        raise FmsegError(f"{folder} has no labelled case. Add one first.")
    copies = list(_copies(cases, facts))
    for source, place in copies:
        (out / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, out / place)
    with atomic_write(out / "dataset.json") as file:
        file.write(json.dumps(_table(facts, len(cases), out.name), indent=1, ensure_ascii=False).encode())
    return out / "dataset.json"


def _copies(cases: Mapping[str, CaseFiles], facts: DatasetInfo) -> Iterator[tuple[Path, Path]]:
    """Yield each file of the cases and where it goes."""
    for name, files in cases.items():
        plain = re.sub(r"[^A-Za-z0-9_.-]", "_", name)
        assert files.labels is not None
        wrong = [path.name for path in (*files.images, files.labels) if suffix_of(path) != facts.ending]
        if len(files.images) != len(facts.channels) or wrong:
            raise FmsegError(
                f"The case {name} has {len(files.images)} image file(s){f', such as {wrong[0]}' if wrong else ''}. "
                f"nnU-Net wants one for each channel ({', '.join(facts.channels)}), and all files as {facts.ending}."
            )
        for channel, image in enumerate(files.images):
            yield image, Path("imagesTr", f"{plain}_{channel:04d}{facts.ending}")
        yield files.labels, Path("labelsTr", f"{plain}{facts.ending}")


def _table(facts: DatasetInfo, n_cases: int, name: str) -> dict[str, object]:
    """Return the fields that nnU-Net reads, and no others; its labels are numbered without a gap."""
    if sorted(facts.labels) != list(range(1, len(facts.labels) + 1)):
        raise FmsegError(
            f"The classes have the numbers {sorted(facts.labels)}; nnU-Net wants 1, 2, 3... without a gap."
        )
    ignore = {} if facts.ignore is None else {"ignore": len(facts.labels) + 1}
    if facts.ignore is not None and facts.ignore != len(facts.labels) + 1:
        raise FmsegError(f"Unlabelled voxels have the number {facts.ignore}; nnU-Net wants {len(facts.labels) + 1}.")
    labels = {class_name: value for value, class_name in sorted(facts.labels.items())}
    return {
        "name": name,
        "channel_names": {str(i): channel for i, channel in enumerate(facts.channels)},
        "labels": {"background": 0, **labels, **ignore},
        "numTraining": n_cases,
        "file_ending": facts.ending,
    }

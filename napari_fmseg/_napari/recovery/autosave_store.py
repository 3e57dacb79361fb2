"""Copies of labels on disk that outlive a crash: one folder per running viewer, one label file per layer.

::

    recovery/
    └── 20260131-101502-4711-a1b2c3/      one viewer; `session.json` says which process it belongs to
        ├── session.json
        ├── liver-1.json                  place, names and colours of a layer, and which file holds its voxels
        ├── liver-1.3.nii.gz              its voxels, in the order of its scan's file: useful by itself
    └── liver-1.answer                what it held before it was corrected, compressed

The voxels are written first, under a new name; replacing the small json makes them count. So there is a whole copy at
any moment. A folder whose process runs is nobody else's. Labels that were painted, not saved and removed go to a folder
of the same form beside it, from which they can be put back for `KEPT_DAYS`. Nothing here knows napari or Qt; `write`
and `retire` may run in a thread.
"""

from __future__ import annotations

import gzip
import json
import os
import platform
import re
import shutil
import threading
import time
import uuid
import zlib
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil

from napari_fmseg._napari.correct.tracking.packed_labels import ANSWER, PackedLabels
from napari_fmseg._napari.correct.tracking.slice_record import CORRECTED, FINISHED
from napari_fmseg._napari.layer_transform import fmseg_metadata
from napari_fmseg._napari.layers import KEY, LayerData, along, as_filed, geometry_of
from napari_fmseg._napari.recovery.metadata_json import from_json, to_json
from napari_fmseg.core.atomic_write import atomic_write
from napari_fmseg.core.errors import FmsegError, GeometryMismatch, UnreadableVolume
from napari_fmseg.core.volume import Geometry, LabelMap
from napari_fmseg.io import read_labels, write_labels

__all__ = ["KEPT_DAYS", "Autosave", "Session", "Work", "delete", "list_abandoned", "list_removed", "read", "work_of"]

KEPT_DAYS = 30  # of labels that were removed without being saved
ELSEWHERE_S = 120  # a folder of another machine counts as in use this long after its last sign of life


@dataclass(frozen=True, eq=False)
class Work:
    """A labels layer as it is now; taking one copies no voxels.

    Attributes
    ----------
    data
        The layer's own array.
    geometry
        Of `data`, or None if it has not three axes, or nobody can tell where they lie.
    options
        What napari needs to make the layer again, but the data.
    """

    data: Any
    geometry: Geometry | None
    options: dict[str, Any]

    @property
    def answer(self) -> PackedLabels | None:
        """What the layer held before it was corrected, if that is known."""
        found = (self.options["metadata"].get(KEY) or {}).get(ANSWER)
        return found if isinstance(found, PackedLabels) else None


@dataclass(frozen=True)
class Autosave:
    """A copy that can be offered back.

    Attributes
    ----------
    name
        Of the layer.
    saved_at
        Seconds since 1970; of removed labels, when they were removed.
    shape
        Voxels along each axis.
    n_bytes
        On disk.
    path
        The json that describes it.
    """

    name: str
    saved_at: float
    shape: tuple[int, ...]
    n_bytes: int
    path: Path


def work_of(layer: Any) -> Work:
    """Return a snapshot of a labels layer; fast, for the thread that may touch layers."""
    recorded = fmseg_metadata(layer)
    colors = getattr(layer.colormap, "color_dict", None)
    options = {
        "name": layer.name,
        "scale": np.asarray(layer.scale, float),
        "translate": np.asarray(layer.translate, float),
        "rotate": np.asarray(layer.rotate, float),
        "shear": np.asarray(layer.shear, float),
        "affine": np.asarray(layer.affine.affine_matrix, float),
        "units": [str(unit) for unit in layer.units],
        "axis_labels": list(layer.axis_labels),
        "opacity": float(layer.opacity),
        "blending": str(layer.blending),
        "features": {str(k): v.tolist() for k, v in layer.features.items()},
        "colormap": None if colors is None else {k: np.asarray(v, float).tolist() for k, v in colors.items()},
        "metadata": {**layer.metadata, KEY: recorded} if recorded else dict(layer.metadata),
    }
    try:
        geometry = geometry_of(layer) if layer.ndim == 3 else None
    except GeometryMismatch:  # such as units of time: the voxels and the layer's own transform are kept all the same
        geometry = None
    return Work(layer.data, geometry, options)


class Session:
    """The copies of one viewer.

    Parameters
    ----------
    root
        The recovery folder; made when something is written first.
    """

    def __init__(self, root: Path) -> None:
        stamp = time.strftime("%Y%m%d-%H%M%S")
        self.folder = root / f"{stamp}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        self._closed = threading.Event()
        self._lock = threading.Lock()  # one copy is written at a time
        self._n = 0
        self._last: dict[str, tuple[int, int]] = {}  # of every key: number of its file, checksum of what it holds
        self._answers: dict[str, PackedLabels | None] = {}  # of every key: the model's answer that is written

    def new_key(self, name: str) -> str:
        """Return a name for files of a layer that no other layer has."""
        self._n += 1
        return f"{re.sub(r'[^A-Za-z0-9_-]+', '-', name).strip('-')[:40] or 'labels'}-{self._n}"

    def write(self, key: str, work: Work) -> bool:
        """Copy a layer to disk, if its voxels differ from the last copy's; takes seconds for a large one.

        Raises
        ------
        FmsegError
            If it cannot be written; the copy before stays.
        """
        with self._lock:
            data = _voxels_of(work)
            n, before = self._last.get(key, (0, -1))
            checksum = _checksum(data) ^ _checksum_of_facts(work)
            if self._closed.is_set() or checksum == before:
                return False
            _make_private(self.folder)
            self._sign()
            file = _write_voxels(self.folder, f"{key}.{n + 1}", data, work)
            if self._answers.get(key) is not work.answer:
                _write_answer(self.folder / f"{key}.answer", work)
                self._answers[key] = work.answer
            _write_sheet(self.folder / f"{key}.json", file, data, work)
            self._last[key] = (n + 1, checksum)
            for old in self.folder.glob(f"{key}.*.*"):
                if old.name != file.name:
                    old.unlink(missing_ok=True)
            if self._closed.is_set():
                self.close()
            return True

    def retire(self, key: str, work: Work, bin_root: Path) -> Autosave | None:
        """Move a layer, as it is now, to where it can be put back from; may take seconds, and works when closed.

        Parameters
        ----------
        key, work
            The layer.
        bin_root
            The folder of removed labels.

        Returns
        -------
        Autosave or None
            None if nothing is painted in it.

        Raises
        ------
        FmsegError
            If it cannot be written; the copy before stays.
        """
        with self._lock:
            data = _voxels_of(work)
            if not data.any():
                self.remove(key)
                return None
            folder = bin_root / self.folder.name
            _make_private(folder)
            n, before = self._last.get(key, (0, -1))
            is_known = before == _checksum(data) ^ _checksum_of_facts(work)
            known = [*self.folder.glob(f"{key}.{n}.*")] if is_known else []
            file = _link(known[0], folder) if known else None
            if file is None:
                file = _write_voxels(folder, f"{key}.{n + 1}", data, work)
            _write_answer(folder / f"{key}.answer", work)
            _write_sheet(folder / f"{key}.json", file, data, work)
            self.remove(key)
            return _look(folder / f"{key}.json")

    def _sign(self) -> None:
        """Write down which process owns the folder."""
        if not (self.folder / "session.json").exists():
            own = {"pid": os.getpid(), "started": psutil.Process().create_time(), "host": platform.node()}
            (self.folder / "session.json").write_text(json.dumps(own))

    def beat(self) -> None:
        """Update the time stamp of the session, for other machines that share the folder."""
        with suppress(OSError):
            os.utime(self.folder / "session.json")

    def remove(self, key: str) -> None:
        """Remove the copy of a layer."""
        self._last.pop(key, None)
        self._answers.pop(key, None)
        (self.folder / f"{key}.json").unlink(missing_ok=True)
        for file in self.folder.glob(f"{key}.*"):
            file.unlink(missing_ok=True)

    def close(self) -> None:
        """Remove all: the viewer was closed by the user. What is being written now is removed when it is done."""
        self._closed.set()
        for sheet in self.folder.glob("*.json"):
            sheet.unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)


def _voxels_of(work: Work) -> npt.NDArray[Any]:
    data = np.array(work.data)
    return data if data.dtype.kind in "ui" else data.astype(np.int64)


def _checksum(data: npt.NDArray[Any]) -> int:
    return zlib.crc32(data.reshape(-1).view(np.uint8).data)


def _checksum_of_facts(work: Work) -> int:
    """Return a number for what is recorded of a layer beside its voxels while it is corrected."""
    recorded = work.options["metadata"].get(KEY) or {}
    facts = [recorded.get(name) for name in (CORRECTED, FINISHED)], work.answer is not None
    return zlib.crc32(repr(facts).encode())


def _make_private(folder: Path) -> None:
    """Make a folder that nobody else may look into: labels are of patients."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)


def _write_voxels(folder: Path, stem: str, data: npt.NDArray[Any], work: Work) -> Path:
    if work.geometry is not None:
        recorded = work.options["metadata"].get(KEY) or {}
        labels = LabelMap(data, work.geometry, {}, recorded.get("names") or {}, recorded.get("colors") or {})
        path = write_labels(as_filed(labels, recorded.get("filed")), folder / f"{stem}.nii.gz")
    else:
        path = folder / f"{stem}.npy.gz"
        with atomic_write(path) as file, gzip.open(file, "wb", compresslevel=1) as packer:
            np.save(packer, data)
    with path.open("rb+") as file:
        os.fsync(file.fileno())
    return path


def _write_answer(path: Path, work: Work) -> None:
    """Write what a layer held before it was corrected, or remove it where that is not known."""
    if work.answer is None:
        path.unlink(missing_ok=True)
        return
    with atomic_write(path) as file:
        file.write(work.answer.to_bytes())
        file.flush()
        os.fsync(file.fileno())


def _write_sheet(path: Path, file: Path, data: npt.NDArray[Any], work: Work) -> None:
    facts = {"name": work.options["name"], "saved_at": time.time(), "file": file.name, "dtype": data.dtype.str,
             "geometry": work.geometry, "shape": data.shape, "options": work.options}  # fmt: skip
    with atomic_write(path) as sheet:
        sheet.write(json.dumps({k: to_json(v) for k, v in facts.items()}).encode())
        sheet.flush()
        os.fsync(sheet.fileno())


def _link(file: Path, folder: Path) -> Path | None:
    """Return the have a file in another folder too, without copying it where that can be; None where it cannot be
    had at all.
    """
    path = folder / file.name
    try:
        os.link(file, path)
        os.utime(path)  # from now on it is kept
    except OSError:  # a file system without links, or the file was removed meanwhile
        return None
    return path


def list_removed(roots: Iterable[Path]) -> list[Autosave]:
    """List the labels that were painted, not saved and removed, newest first."""
    sheets = [sheet for root in roots if root.is_dir() for sheet in root.glob("*/*.json")]
    return sorted((save for sheet in sheets if (save := _look(sheet)) is not None), key=lambda save: -save.saved_at)


def prune(roots: Iterable[Path], now: float | None = None) -> None:
    """Remove for good what was removed more than `KEPT_DAYS` ago."""
    oldest = (time.time() if now is None else now) - KEPT_DAYS * 86_400
    for folder in [path for root in roots if root.is_dir() for path in root.iterdir()]:
        if folder.is_symlink() or not folder.is_dir():
            continue
        with suppress(OSError):  # another window may be doing the same
            for file in (*folder.glob("*.json"), *folder.glob("*.gz"), *folder.glob("*.answer")):
                if file.lstat().st_mtime < oldest:
                    file.unlink(missing_ok=True)
            if not any(folder.iterdir()):
                folder.rmdir()


def list_abandoned(roots: Iterable[Path]) -> list[Autosave]:
    """List the copies of viewers that ended without being closed, newest first."""
    found = []
    for folder in {path for root in roots if root.is_dir() for path in root.iterdir() if path.is_dir()}:
        if not _in_use(folder):
            saves = [save for sheet in folder.glob("*.json") if (save := _look(sheet)) is not None]
            found += saves
            if not saves and not list(folder.glob("*.gz")):  # voxels without a sheet may still be wanted by somebody
                shutil.rmtree(folder, ignore_errors=True)
    return sorted(found, key=lambda save: -save.saved_at)


def _in_use(folder: Path) -> bool:
    """Return whether the process that a folder belongs to still runs; the same number may be another process by now."""
    try:
        own = json.loads((folder / "session.json").read_text())
        age_s = time.time() - (folder / "session.json").stat().st_mtime
        if own["host"] != platform.node():
            return age_s < ELSEWHERE_S
        return bool(abs(psutil.Process(own["pid"]).create_time() - own["started"]) < 1)
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True
    except (OSError, ValueError, KeyError, TypeError):
        with suppress(OSError):  # being made by another process, or broken
            return time.time() - folder.stat().st_mtime < ELSEWHERE_S
        return True


def _look(sheet: Path) -> Autosave | None:
    """Read what can be offered, or None if it is no whole copy."""
    if sheet.name == "session.json":
        return None
    try:
        facts = json.loads(sheet.read_text())
        n_bytes = (sheet.parent / facts["file"]).stat().st_size
        shape = tuple(int(n) for n in from_json(facts["shape"]))
        return Autosave(str(facts["name"]), float(facts["saved_at"]), shape, n_bytes, sheet)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def read(save: Autosave) -> LayerData:
    """Make the layer again: data, options for napari, "labels".

    Raises
    ------
    UnreadableVolume
        If the copy is damaged, or was removed meanwhile.
    """
    try:
        facts = {k: from_json(v) for k, v in json.loads(save.path.read_text()).items()}
        file = save.path.parent / facts["file"]
        if facts["geometry"] is None:
            with gzip.open(file) as packer:
                data = np.load(packer, allow_pickle=False)
        else:
            data = along(read_labels(file), facts["geometry"]).data
        if data.shape != tuple(facts["shape"]):
            raise UnreadableVolume(f"its shape is {data.shape}, not {tuple(facts['shape'])}")
        options = _options(facts["options"])
        _add_answer(options, save.path.with_suffix(".answer"))
        return np.array(data, dtype=facts["dtype"], order="C"), options, "labels"
    except (OSError, EOFError, ValueError, KeyError, TypeError, FmsegError) as error:
        raise UnreadableVolume(
            f"The autosaved labels {save.name!r} cannot be read from {save.path.parent}. They may be damaged, or "
            "another napari restored them meanwhile. If a label file (.nii.gz) lies there, try to open it."
        ) from error


def _add_answer(options: dict[str, Any], path: Path) -> None:
    """Put the model's answer where the layer had it; without it, or if it is damaged, the labels come back alone."""
    with suppress(OSError, UnreadableVolume):
        answer = PackedLabels.from_bytes(path.read_bytes())
        options["metadata"] = {**options["metadata"], KEY: {**(options["metadata"].get(KEY) or {}), ANSWER: answer}}


def _options(recorded: dict[str, Any]) -> dict[str, Any]:
    """Leave out what the layer did not have."""
    return {key: value for key, value in recorded.items() if not (key == "colormap" and value is None)}


def delete(save: Autosave) -> None:
    """Remove a copy, and its folder with the last one."""
    with suppress(OSError, ValueError, KeyError):
        (save.path.parent / json.loads(save.path.read_text())["file"]).unlink(missing_ok=True)
    save.path.with_suffix(".answer").unlink(missing_ok=True)
    save.path.unlink(missing_ok=True)
    if not [p for p in save.path.parent.glob("*.json") if p.name != "session.json"]:
        shutil.rmtree(save.path.parent, ignore_errors=True)

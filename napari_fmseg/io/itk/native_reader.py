"""Parsers in native code, behind one door: called here, or in a process of their own that may crash alone.

A damaged file can make such a parser read or write where it must not, and the system then ends the whole process. For
the command line that is one lost run. A window with an hour's painting in it must not go with it, and neither must a
folder with a hundred good scans: they call `isolate`, and what is parsed natively comes through a pipe. The process
starts with the first such file, stays warm, ends when nobody needs it, and leaves nothing on the disk.
"""

from __future__ import annotations

import atexit
import itertools
import json
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from napari_fmseg.core.errors import UnreadableVolume
from napari_fmseg.core.processes import (
    ChildProcess,
    describe_exit_code,
    lower_priority,
    python_module,
    when_parent_exits,
)
from napari_fmseg.io.damage import library_errors

__all__ = ["Parsed", "call", "each", "isolate", "main"]

_COMMAND = python_module("napari_fmseg.io.itk.native_reader")
_IDLE_S = 300.0
_PIPE = 1 << 20
_AHEAD = 4  # files for each thread: the stack should not lie in memory twice


@dataclass(frozen=True)
class Parsed:
    """What a parser found.

    Attributes
    ----------
    voxels
        As the library gives them, several components of a voxel last.
    n_channels
        How many components a voxel has.
    spacing, direction, origin
        The place, in the order x, y, z, with an axis in each column; empty where the parser tells none.
    """

    voxels: npt.NDArray[Any]
    n_channels: int = 1
    spacing: npt.NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    direction: npt.NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 0)))
    origin: npt.NDArray[np.float64] = field(default_factory=lambda: np.empty(0))


def itk_image(path: Path, reader: str) -> Parsed:
    """Parse a file with one of SimpleITK's readers."""
    import SimpleITK as sitk

    image = sitk.ReadImage(str(path), imageIO=reader)
    n = image.GetDimension()
    return Parsed(
        sitk.GetArrayFromImage(image),
        image.GetNumberOfComponentsPerPixel(),
        np.array(image.GetSpacing()),
        np.array(image.GetDirection()).reshape(n, n),
        np.array(image.GetOrigin()),
    )


def itk_place(path: Path, reader: str) -> Parsed:
    """Parse a file's header with one of SimpleITK's readers: the place, without voxels."""
    import SimpleITK as sitk

    fields = sitk.ImageFileReader()
    fields.SetFileName(str(path))
    fields.SetImageIO(reader)
    fields.ReadImageInformation()
    n = fields.GetDimension()
    direction = np.array(fields.GetDirection()).reshape(n, n)
    return Parsed(
        np.empty(0),
        fields.GetNumberOfComponents(),
        np.array(fields.GetSpacing()),
        direction,
        np.array(fields.GetOrigin()),
    )


def dicom_frames(path: Path, _: str = "") -> Parsed:
    """Parse the compressed pixels of a DICOM file with the plug-ins of pydicom."""
    from napari_fmseg.io.dicom.file import frames_by_pydicom

    return Parsed(frames_by_pydicom(path))


_PARSERS: dict[str, Callable[[Path, str], Parsed]] = {
    "itk_image": itk_image,
    "itk_place": itk_place,
    "dicom_frames": dicom_frames,
}
_turn = threading.Lock()
_child: ChildProcess | None = None
_isolated = False


def isolate(wanted: bool = True) -> None:
    """Parse in a separate process from now on, or no longer."""
    global _isolated, _child
    with _turn:
        _isolated = wanted
        if not wanted and _child is not None:
            _child.close()
            _child = None


@atexit.register
def _end_with_us() -> None:
    """End the process with ours, whoever still waits for it."""
    global _child
    child, _child = _child, None
    if child is not None:
        child.close()


def call(parser: str, path: Path, detail: str = "") -> Parsed:
    """Parse one file.

    Parameters
    ----------
    parser
        The name of a function above.
    path
        The file.
    detail
        What else the function needs.

    Raises
    ------
    UnreadableVolume
        If the parser crashed; and what it raises itself.
    """
    return next(each(parser, [path], detail))


def each(parser: str, paths: Iterable[Path], detail: str = "", *, here: bool = False) -> Iterator[Parsed]:
    """Parse files beside each other, a few ahead, and give the results in their order; else as `call`.

    With `here`, what no native code takes part in is not sent elsewhere.
    """
    paths = list(paths)
    if _isolated and not here:
        yield from _in_child(parser, paths, detail)
    else:
        yield from _beside_each_other(parser, paths, detail)


def _beside_each_other(parser: str, paths: list[Path], detail: str) -> Iterator[Parsed]:
    if len(paths) == 1:
        yield _PARSERS[parser](paths[0], detail)
        return
    workers = min(4, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(paths), _AHEAD * workers):
            part = paths[start : start + _AHEAD * workers]
            yield from pool.map(_PARSERS[parser], part, itertools.repeat(detail))


# --- the side that requests -----------------------------------------------------------------------------------------


def _start() -> ChildProcess:
    return ChildProcess([*_COMMAND, str(os.getpid())], "reader of damaged files", keep_errors=None, buffered=False)


class _Ended(Exception):
    """The process is no more."""

    def __init__(self, code: int | None) -> None:
        super().__init__(describe_exit_code(code))
        self.code = code


def _in_child(parser: str, paths: list[Path], detail: str) -> Iterator[Parsed]:
    done = 0
    for last_try in (False, True):
        try:
            for parsed in _answers(parser, paths[done:], detail):
                done += 1
                yield parsed
            return
        except _Ended as error:
            if error.code == 0 and not last_try:  # it had just left, as nobody had needed it for long
                continue
            raise UnreadableVolume(
                f"{paths[done].name} made the library that reads its format crash ({error}). The file is damaged, or "
                "was made to do harm; nothing else was affected. Copy it again from its source."
            ) from None


def _answers(parser: str, paths: list[Path], detail: str) -> Iterator[Parsed]:
    """Send requests to the process and yield its results; if the caller stops early, the process is ended."""
    global _child
    with _turn:
        if _child is None or not _child.is_ours or not _child.is_running:
            _child = _start()
        child, whole = _child, False
        try:
            _send(child.stdin, {"parser": parser, "paths": [os.fspath(path) for path in paths], "detail": detail})
            for number in range(1, len(paths) + 1):
                parsed = _receive(child.stdout)
                whole = number == len(paths)
                yield parsed
        except (RuntimeError, UnreadableVolume):  # an answer, too; it waits for the next question
            whole = True
            raise
        except (BrokenPipeError, EOFError):
            child.wait()
            raise _Ended(child.close()) from None
        finally:
            if not whole:
                child.close()
                _child = None


def _send(pipe: IO[bytes], message: dict[str, Any], voxels: npt.NDArray[Any] | None = None) -> None:
    parts = [memoryview(json.dumps(message).encode() + b"\n")]
    if voxels is not None and voxels.nbytes:
        parts.append(np.ascontiguousarray(voxels).reshape(-1).view(np.uint8).data)
    for part in parts:
        while part:
            part = part[pipe.write(part[: 4 * _PIPE]) or 0 :]


def _receive(pipe: IO[bytes]) -> Parsed:
    """Wait for one answer; `RuntimeError` is the message of the parser, `EOFError` the end of the process."""
    line = pipe.readline()
    if not line.endswith(b"\n"):
        raise EOFError
    fields = json.loads(line)
    if "refused" in fields:
        raise UnreadableVolume(fields["refused"])
    if "failed" in fields:
        raise RuntimeError(fields["failed"])
    voxels: npt.NDArray[Any] = np.empty(fields["shape"], np.dtype(fields["kind"]))
    rest = voxels.reshape(-1).view(np.uint8).data if voxels.nbytes else memoryview(b"")
    while rest:
        n = pipe.readinto(rest[: 4 * _PIPE])  # type: ignore[attr-defined]
        if not n:
            raise EOFError
        rest = rest[n:]
    n_axes = len(fields["spacing"])
    direction = np.array(fields["direction"], np.float64).reshape(n_axes, n_axes)
    return Parsed(voxels, fields["n_channels"], np.array(fields["spacing"]), direction, np.array(fields["origin"]))


# --- the process ------------------------------------------------------------------------------------------------


def main(parent: int) -> None:
    """Serve until the other end closes, or nobody asks for some minutes."""
    reading, writing = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb", 0)
    os.dup2(2, 1)  # what libraries print is no answer
    lower_priority()
    when_parent_exits(parent, lambda: os._exit(0))
    while True:
        timer = threading.Timer(_IDLE_S, os._exit, (0,))
        timer.daemon = True
        timer.start()
        line = reading.readline()
        timer.cancel()
        if not line:
            os._exit(0)
        _serve(json.loads(line), writing)


def _serve(asked: dict[str, Any], writing: IO[bytes]) -> None:
    paths = [Path(path) for path in asked["paths"]]
    answers = _beside_each_other(asked["parser"], paths, asked["detail"])
    for _ in paths:
        try:
            parsed = next(answers)
        except UnreadableVolume as error:
            _send(writing, {"refused": str(error)})
            return
        except (OSError, MemoryError) as error:
            _send_failure(writing, error)
            return
        except library_errors() as error:
            _send_failure(writing, error)
            return
        fields = {"shape": parsed.voxels.shape, "kind": parsed.voxels.dtype.str, "n_channels": parsed.n_channels}
        place = {name: getattr(parsed, name).ravel().tolist() for name in ("spacing", "direction", "origin")}
        _send(writing, {**fields, **place}, parsed.voxels)


def _send_failure(writing: IO[bytes], error: Exception) -> None:
    _send(writing, {"failed": str(error) or type(error).__name__})


if __name__ == "__main__":
    main(int(sys.argv[1]))

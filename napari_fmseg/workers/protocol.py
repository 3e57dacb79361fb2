"""Messages between the engine's process and ours: a head in JSON, then the arrays as they are in memory.

A message is a magic number, the length of its head and the head; behind it come the bytes of the arrays that the head
describes. Nothing is pickled, so that a message can hold data only, never code. Reading and writing go through calls
of the system that release Python's lock, in parts of a few MB, so that a window drawn by the same process stays quick.
"""

from __future__ import annotations

import dataclasses
import io
import json
import struct
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_fmseg.core.errors import FmsegError
from napari_fmseg.core.events import Progress, Saved, StageResult, Warned
from napari_fmseg.core.volume import Geometry, LabelMap, Volume
from napari_fmseg.models.card import Intensity, ModelCard, NetSpec
from napari_fmseg.models.half_precision import HalfPrecision
from napari_fmseg.models.measures import Measures, TrainingData, Values
from napari_fmseg.models.validation import Accuracy, Validation
from napari_fmseg.pipelines import SegmentOptions
from napari_fmseg.pipelines.batch import SegmentationJob

__all__ = ["ChannelClosed", "MessageChannel"]

_HEAD = struct.Struct("<8sI")
_MAGIC = b"fmsegA1\n"
_PART = 4 << 20  # bytes in one call
_LONGEST_HEAD = 64 << 20
_KINDS: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        Accuracy,
        Geometry,
        HalfPrecision,
        Intensity,
        LabelMap,
        Measures,
        ModelCard,
        NetSpec,
        Progress,
        Saved,
        SegmentOptions,
        SegmentationJob,
        StageResult,
        TrainingData,
        Validation,
        Values,
        Volume,
        Warned,
    )
}
"""All that may travel besides plain values: dataclasses, rebuilt from their fields."""


class ChannelClosed(Exception):
    """The other end has gone, or sent something that is not a message."""


class MessageChannel:
    """Both directions between two processes.

    Parameters
    ----------
    reading, writing
        Unbuffered binary files: the ends of two pipes.
    """

    def __init__(self, reading: io.RawIOBase, writing: io.RawIOBase) -> None:
        self._reading, self._writing = reading, writing
        self.writing_lock, self._reading_lock = threading.Lock(), threading.Lock()

    def send(self, kind: str, /, **fields: Any) -> None:
        """Send one message; from several threads one after the other.

        Raises
        ------
        ChannelClosed
            If nobody reads any more.
        FmsegError
            If a value cannot travel.
        """
        with self.writing_lock:
            self.send_locked(kind, **fields)

    def send_locked(self, kind: str, /, **fields: Any) -> None:
        """Send one message while `writing_lock` is held by the caller."""
        arrays: list[npt.NDArray[Any]] = []
        packed = {name: _pack(value, arrays) for name, value in fields.items()}
        described = [[a.dtype.str, list(a.shape)] for a in arrays]
        head = json.dumps({"kind": kind, "fields": packed, "arrays": described}).encode()
        try:
            self._write(memoryview(_HEAD.pack(_MAGIC, len(head)) + head))
            for array in arrays:
                for part in _parts(array):
                    self._write(part.data)
        except (OSError, ValueError) as error:  # ValueError: the file was closed meanwhile
            raise ChannelClosed(f"nobody reads any more ({error})") from error

    def receive(self) -> tuple[str, dict[str, Any]]:
        """Wait for the next message.

        Returns
        -------
        tuple
            Its kind and its fields; arrays own their memory and are writeable.

        Raises
        ------
        ChannelClosed
            If the other end has gone, also in the middle of a message.
        """
        with self._reading_lock:
            head, arrays = self._receive()
        return head["kind"], {name: _unpack(value, arrays) for name, value in head["fields"].items()}

    def _receive(self) -> tuple[dict[str, Any], list[npt.NDArray[Any]]]:
        try:
            magic, length = _HEAD.unpack(self._read(bytearray(_HEAD.size)))
            if magic != _MAGIC or length > _LONGEST_HEAD:
                raise ChannelClosed("what came is no message")
            head = json.loads(bytes(self._read(bytearray(length))))
            arrays = [np.empty(shape, np.dtype(dtype)) for dtype, shape in head["arrays"]]
            for array in arrays:
                if array.nbytes:
                    self._read(array.reshape(-1).view(np.uint8))
        except (OSError, ValueError) as error:
            raise ChannelClosed(f"the link failed ({error})") from error
        return head, arrays

    def close(self) -> None:
        """Close both ends, as soon as nobody uses them; to be called when the other process has ended."""
        for end, lock in ((self._writing, self.writing_lock), (self._reading, self._reading_lock)):
            with lock:
                end.close()

    def _write(self, content: memoryview) -> None:
        while content:
            content = content[self._writing.write(content[:_PART]) or 0 :]

    def _read(self, buffer: Any) -> Any:
        rest = memoryview(buffer)
        while rest:
            n = self._reading.readinto(rest[:_PART])
            if not n:
                raise ChannelClosed("the other end has gone")
            rest = rest[n:]
        return buffer


def _parts(array: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    """Yield the bytes of an array in order; what does not lie in one piece is copied slab by slab, never whole."""
    if array.flags.c_contiguous:
        if array.nbytes:
            yield array.reshape(-1).view(np.uint8)
        return
    depth = max(1, _PART * len(array) // max(1, array.nbytes))
    for start in range(0, len(array), depth):
        yield np.ascontiguousarray(array[start : start + depth]).reshape(-1).view(np.uint8)


def _pack(value: Any, arrays: list[npt.NDArray[Any]]) -> Any:
    """Return a value as JSON has it; what JSON does not know becomes ``{"~": kind, "v": ...}``."""
    if value is None or isinstance(value, bool | str):
        return value
    if type(value) in (int, float):
        return value
    if isinstance(value, np.ndarray | np.generic):
        array = np.asarray(value)
        if array.dtype.kind not in "biufcSU":
            raise FmsegError(f"Values of type {array.dtype} cannot be segmented. Expected numbers; convert them first.")
        arrays.append(array)
        return {"~": "array" if isinstance(value, np.ndarray) else "scalar", "v": len(arrays) - 1}
    if isinstance(value, tuple | list):
        items = [_pack(v, arrays) for v in value]
        return {"~": "tuple", "v": items} if isinstance(value, tuple) else items
    if isinstance(value, Mapping):
        return {"~": "map", "v": [[_pack(k, arrays), _pack(v, arrays)] for k, v in value.items()]}
    if isinstance(value, Path):
        return {"~": "path", "v": str(value)}
    if type(value).__name__ in _KINDS and dataclasses.is_dataclass(value):
        fields = {f.name: _pack(getattr(value, f.name), arrays) for f in dataclasses.fields(value)}
        return {"~": type(value).__name__, "v": fields}
    if isinstance(value, int | float):
        return _pack(value.real, arrays)
    return str(value)  # such as a date in the meta of a file: to be read, not to be computed with


def _unpack(value: Any, arrays: list[npt.NDArray[Any]]) -> Any:
    """Undo `_pack`."""
    if isinstance(value, list):
        return [_unpack(v, arrays) for v in value]
    if not isinstance(value, dict):
        return value
    kind, inner = value["~"], value["v"]
    match kind:
        case "array":
            return arrays[inner]
        case "scalar":
            return arrays[inner][()]
        case "tuple":
            return tuple(_unpack(v, arrays) for v in inner)
        case "map":
            return {_unpack(k, arrays): _unpack(v, arrays) for k, v in inner}
        case "path":
            return Path(inner)
    if kind not in _KINDS:
        raise ChannelClosed(f"nothing is called {kind!r}")
    return _KINDS[kind](**{name: _unpack(v, arrays) for name, v in inner.items()})

"""Labels kept in little memory: the model's answer beside the labels that the user corrects."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_fmseg.core.errors import UnreadableVolume

__all__ = ["ANSWER", "PackedLabels"]

ANSWER = "model_answer"  # in a layer's own metadata

_MOST_HEADER = 1000


@dataclass(frozen=True)
class PackedLabels:
    """A label array, compressed.

    Parameters
    ----------
    shape
        Of the array.
    dtype
        Of the array, as numpy writes it.
    payload
        Its compressed voxels.
    """

    shape: tuple[int, ...]
    dtype: str
    payload: bytes

    @classmethod
    def of(cls, labels: npt.NDArray[Any]) -> PackedLabels:
        """Compress labels; about 100 MB take a second."""
        data = np.ascontiguousarray(labels)
        return cls(tuple(data.shape), data.dtype.str, zlib.compress(data.reshape(-1).view(np.uint8).data, 1))

    def unpack(self) -> npt.NDArray[Any]:
        """Return the labels.

        Raises
        ------
        UnreadableVolume
            If the voxels are damaged.
        """
        dtype = np.dtype(self.dtype)
        n_bytes = int(np.prod(self.shape, dtype=np.int64)) * dtype.itemsize
        unpacker = zlib.decompressobj()
        try:
            data = unpacker.decompress(self.payload, n_bytes + 1)
        except zlib.error as error:
            raise UnreadableVolume(f"The model's answer is damaged: {error}.") from error
        if len(data) != n_bytes or dtype.kind not in "ui":
            raise UnreadableVolume(f"The model's answer is damaged: {len(data)} bytes, expected {n_bytes}.")
        return np.frombuffer(data, dtype).reshape(self.shape)

    def to_bytes(self) -> bytes:
        """Return the whole as the content of a file."""
        return json.dumps({"shape": self.shape, "dtype": self.dtype}).encode() + b"\n" + self.payload

    @classmethod
    def from_bytes(cls, content: bytes) -> PackedLabels:
        """Return what `to_bytes` was given.

        Raises
        ------
        UnreadableVolume
            If it is something else.
        """
        header, newline, payload = content[:_MOST_HEADER].partition(b"\n")
        try:
            facts = json.loads(header)
            shape, dtype = tuple(int(n) for n in facts["shape"]), np.dtype(str(facts["dtype"])).str
        except (ValueError, KeyError, TypeError) as error:
            raise UnreadableVolume("The file of the model's answer is damaged.") from error
        if not newline or min(shape, default=0) < 0:
            raise UnreadableVolume("The file of the model's answer is damaged.")
        return cls(shape, dtype, payload + content[_MOST_HEADER:])

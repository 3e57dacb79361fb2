"""A layer's metadata as JSON and back: geometries, arrays, numbers as keys, tuples and bytes survive."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from napari_fmseg.core.volume import Geometry

__all__ = ["from_json", "to_json"]

TAG = "__fmseg__"
MOST_VALUES = 65_536  # larger arrays in metadata are no facts about a layer
_NOT = object()


def to_json(value: Any) -> Any:
    """Return `value` in what JSON has; what cannot be given, such as an open file, is left out of its collection."""
    found = _pack(value)
    return None if found is _NOT else found


def _pack(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value if type(value) in (type(None), bool, int, float, str) else _pack_kind(value)
    if isinstance(value, Geometry):
        return {TAG: "geometry", "shape": list(value.shape), "affine": value.affine.tolist()}
    if isinstance(value, np.generic):
        return _pack(value.item())
    if isinstance(value, np.ndarray):
        known = value.dtype.kind in "biufU" and value.size <= MOST_VALUES
        return {TAG: "array", "values": value.tolist(), "dtype": value.dtype.str} if known else _NOT
    if isinstance(value, Mapping):
        pairs = [(_pack(k), _pack(v)) for k, v in value.items()]
        return {TAG: "mapping", "pairs": [[k, v] for k, v in pairs if k is not _NOT and v is not _NOT]}
    if isinstance(value, (list, tuple)):
        items = [item for item in map(_pack, value) if item is not _NOT]
        return {TAG: "tuple", "items": items} if isinstance(value, tuple) else items
    if isinstance(value, Path):
        return {TAG: "path", "text": str(value)}
    if isinstance(value, bytes):
        return {TAG: "bytes", "text": base64.b64encode(value).decode()}
    return _NOT


def _pack_kind(value: Any) -> Any:
    """Return a value of a class derived from a plain one as the plain one: an enumeration's text, pydicom's numbers."""
    for kind in (int, float, str):
        if isinstance(value, kind):
            return kind(value)
    return _NOT


def from_json(value: Any) -> Any:
    """Return back what `to_json` was given.

    Raises
    ------
    ValueError
        If it holds something that `to_json` does not write.
    """
    if isinstance(value, list):
        return [from_json(item) for item in value]
    if not isinstance(value, dict):
        return value
    kind = value.get(TAG)
    if kind == "geometry":
        return Geometry(tuple(value["shape"]), np.array(value["affine"]))
    if kind == "array":
        return np.array(value["values"], dtype=value["dtype"])
    if kind == "mapping":
        return {from_json(k): from_json(v) for k, v in value["pairs"]}
    if kind == "tuple":
        return tuple(from_json(item) for item in value["items"])
    if kind == "path":
        return Path(value["text"])
    if kind == "bytes":
        return base64.b64decode(value["text"])
    raise ValueError(f"Unknown kind of value: {kind!r}.")

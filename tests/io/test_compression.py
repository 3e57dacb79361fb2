from __future__ import annotations

import gzip
import io
import zlib

import numpy as np
import pytest
from isal import igzip_threaded

from napari_fmseg.io.compression import write_gzip, write_zlib

MB = 1 << 20


def label_like(n_bytes: int) -> bytes:
    """Return zeros with short runs of labels."""
    data = np.zeros(n_bytes, np.uint8)
    for start in range(1000, n_bytes, 50_000):
        data[start : start + 700] = 3
    return data.tobytes()


def image_like(n_bytes: int) -> bytes:
    return np.random.default_rng(0).integers(0, 40, n_bytes, np.uint8).tobytes()


@pytest.mark.parametrize("data", [b"", b"abc", label_like(9 * MB + 5), image_like(3 * MB + 1), bytes(MB)])
def test_what_is_compressed_comes_back_from_the_standard_library(data: bytes) -> None:
    packed = io.BytesIO()
    write_gzip(packed, [b"a header", memoryview(data)])
    assert gzip.decompress(packed.getvalue()) == b"a header" + data
    bare = io.BytesIO(b"before")
    bare.seek(6)
    assert write_zlib(bare, memoryview(data)) == len(bare.getvalue()) - 6
    assert zlib.decompress(bare.getvalue()[6:]) == data


def test_threads_are_for_what_shrinks_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("a thread")

    monkeypatch.setattr(igzip_threaded, "open", fail)
    write_gzip(io.BytesIO(), [b"a header", label_like(2 * MB)])
    with pytest.raises(AssertionError, match="a thread"):
        write_gzip(io.BytesIO(), [b"a header", image_like(2 * MB)])

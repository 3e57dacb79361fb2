"""Decoded volumes on disk: read once, then only the crops that are asked for, however large the folder is."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from napari_fmseg.core.atomic_write import atomic_write
from napari_fmseg.core.errors import FmsegError, UnwritableVolume
from napari_fmseg.core.resampling_torch import resize, to_canonical, to_tensor
from napari_fmseg.io import read_volume
from napari_fmseg.models.card import Intensity
from napari_fmseg.pipelines.preprocessing import normalise

__all__ = ["VolumeStore", "decode_volume"]


class VolumeStore:
    """Gives the first channel of volumes, canonical and normalised, from a cache of limited size.

    Parameters
    ----------
    paths
        What `read_volume` takes.
    folder
        Where decoded volumes are kept, as float16; made if it is not there.
    limit_gb
        How much they may take. When it is full, those that were not asked for longest go.
    intensity
        How intensities become 0..1.
    spacing_mm
        Spacing (z, y, x) to which finer volumes are brought; coarser ones, and all if it is empty, keep their own.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        folder: Path,
        limit_gb: float = 20.0,
        intensity: Intensity | None = None,
        spacing_mm: Sequence[float] = (),
    ) -> None:
        self.paths = tuple(paths)
        self._folder, self._limit = Path(folder), int(limit_gb * 1e9)
        self._intensity, self._spacing_mm = intensity or Intensity(), tuple(spacing_mm)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UnwritableVolume(
                f"{self._folder} cannot be made: {error.strerror}. Choose a folder for decoded volumes that has room."
            ) from error

    def __len__(self) -> int:
        return len(self.paths)

    def volume(self, index: int) -> Tensor:
        """Return (z, y, x) float16, mapped from the file: only what is looked at is read.

        Raises
        ------
        UnreadableVolume
            If the volume cannot be read.
        """
        kept = self._place(self.paths[index])
        try:
            os.utime(kept)
            data = np.load(kept, mmap_mode="c")
        except (OSError, ValueError):  # not there, or cut short by a full disk
            data = self._decode(self.paths[index], kept)
        return torch.from_numpy(data)

    def readable(self, index: int) -> FmsegError | None:
        """Decode a volume if need be; give what is wrong with it, or None."""
        try:
            self.volume(index)
        except FmsegError as error:
            return error
        return None

    def decoding_items(self) -> list[dict[str, Any]]:
        """Return what `decode_volume` takes for every volume that is not decoded yet, as plain data."""
        settings = {
            "folder": str(self._folder.absolute()),
            "limit_gb": self._limit / 1e9,
            "intensity": dataclasses.asdict(self._intensity),
            "spacing_mm": list(self._spacing_mm),
        }
        missing = [path for path in self.paths if not self._place(path).exists()]
        return [{"path": str(path.absolute()), **settings} for path in missing]

    def _place(self, path: Path) -> Path:
        """Name the decoded file after what it was made from: another content is another file."""
        facts = path.stat() if path.exists() else None
        told = f"{path.absolute()}|{facts and (facts.st_size, facts.st_mtime_ns)}|{self._intensity}"
        told += f"|{self._spacing_mm}" if self._spacing_mm else ""
        return self._folder / f"{hashlib.sha256(told.encode()).hexdigest()[:32]}.npy"

    def _decode(self, path: Path, kept: Path) -> np.ndarray:
        data, geometry = to_canonical(read_volume(path))
        image = normalise(to_tensor(data[:1]), self._intensity)
        if self._spacing_mm:
            sizes = zip(image.shape[1:], geometry.spacing, self._spacing_mm, strict=True)
            image = resize(image, [max(1, round(n * min(1.0, have / want))) for n, have, want in sizes])
        decoded = image[0].half().numpy()
        self._make_room(decoded.nbytes)
        try:
            with atomic_write(kept) as file:
                np.save(file, decoded)
        except UnwritableVolume:
            return decoded  # no room: it works without the cache, only slower
        return decoded

    def _make_room(self, wanted: int) -> None:
        files = [(facts, p) for p in self._folder.glob("*.npy") if (facts := _facts_of(p)) is not None]
        taken = sum(facts.st_size for facts, _ in files)
        for facts, path in sorted(files, key=lambda f: f[0].st_mtime_ns):
            if taken + wanted <= self._limit:
                break
            path.unlink(missing_ok=True)
            taken -= facts.st_size


def _facts_of(path: Path) -> os.stat_result | None:
    """Return size and times of a file, or None if another process has just removed it."""
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def decode_volume(item: Mapping[str, Any]) -> dict[str, Any]:
    """Decode one volume of `VolumeStore.decoding_items` into the store's folder, in any process that sees it.

    Returns
    -------
    dict
        Nothing; what is wrong with a volume is found again, and reported, by the run that needs it.
    """
    intensity = Intensity(
        **{**item["intensity"], "channels": tuple(Intensity(**c) for c in item["intensity"]["channels"])}
    )
    store = VolumeStore([Path(item["path"])], Path(item["folder"]), item["limit_gb"], intensity, item["spacing_mm"])
    store.readable(0)
    return {}

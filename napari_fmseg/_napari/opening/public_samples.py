"""Public volumes to try a model on: a registry with their hashes, and a download that trusts nothing else.

The registry that is shipped holds only what a person has checked, which may be nothing. A laboratory may add its own
in ``FMSEG_HOME``/samples/registry.toml. Nothing is ever fetched without the user's consent; see `sample_dialog`.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from napari_fmseg._napari.common.preferences import load
from napari_fmseg.core.errors import FmsegError
from napari_fmseg.core.events import Progress
from napari_fmseg.core.package import data_folder
from napari_fmseg.io import suffix_of
from napari_fmseg.models.published.download import RemoteFile, download, is_complete

__all__ = ["PublicSample", "fetch", "find_download", "list_public_samples", "read_registry", "samples_folder"]


@dataclass(frozen=True)
class PublicSample:
    """One file that may be downloaded.

    Attributes
    ----------
    key
        Its short name; also of its folder in the cache.
    title
        What it shows, in a line.
    url
        Where it is; https, or http on this machine.
    file
        What it is called here; the suffix says the format.
    size
        Bytes.
    sha256
        64 hexadecimal digits.
    licence
        Under which its owner gives it away.
    source
        Who made it, and how to cite it.
    models
        Names of the models for which it is a fair trial.
    """

    key: str
    title: str
    url: str
    file: str
    size: int
    sha256: str
    licence: str
    source: str = ""
    models: tuple[str, ...] = ()

    @property
    def remote(self) -> RemoteFile:
        """The file as it is downloaded; `ValueError` if address, size or hash are not to be trusted."""
        return RemoteFile(self.url, self.file, self.size, self.sha256)

    @property
    def host(self) -> str:
        """The name of the machine that it comes from."""
        return self.remote.host


def samples_folder() -> Path:
    """Return where downloaded volumes are kept: below the folder for downloads that the preferences name."""
    return load().folder / "samples"


def list_public_samples() -> tuple[PublicSample, ...]:
    """List what is offered: the shipped registry, then the user's own.

    Raises
    ------
    FmsegError
        If a registry makes no sense.
    """
    found: dict[str, PublicSample] = {}
    for path in (_registry_path(), samples_folder() / "registry.toml"):
        if path.is_file():
            found |= {sample.key: sample for sample in read_registry(path)}
    return tuple(found.values())


def read_registry(path: Path) -> tuple[PublicSample, ...]:
    """Read a registry.

    Raises
    ------
    FmsegError
        If it is not TOML, or an entry lacks something or is not to be trusted.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        return tuple(_sample(entry) for entry in table.get("sample", []))
    except (OSError, ValueError, TypeError) as error:
        raise FmsegError(f"{path} is no registry of samples: {error}. Correct it, or remove it.") from error


def find_download(sample: PublicSample) -> Path | None:
    """Return the file if it was downloaded before and its hash is still right."""
    folder = _place(sample)
    return folder / sample.file if is_complete(sample.remote, folder) else None


def fetch(sample: PublicSample) -> Iterator[Progress]:
    """Download a sample, after the user agreed; afterwards `find_download` gives its place.

    Ending the iterator early ends the download and leaves nothing behind.

    Yields
    ------
    Progress
        In bytes.

    Raises
    ------
    FmsegError
        If the host cannot be reached, the disk is full, or the size or the hash differs: then the file is removed.
    """
    yield from download(sample.remote, _place(sample), sample.title)


def _registry_path() -> Path:
    """Return the registry of public sample volumes."""
    return data_folder("resources") / "samples" / "registry.toml"


def _sample(entry: Mapping[str, Any]) -> PublicSample:
    known = {field.name for field in fields(PublicSample)}
    if surplus := set(entry) - known:
        raise ValueError(f"unknown fields {sorted(surplus)}")
    sample = PublicSample(**{**entry, "models": tuple(entry.get("models", ()))})
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", sample.key) or sample.file != Path(sample.file).name:
        raise ValueError(f"{sample.key!r} with file {sample.file!r}: both must be plain names")
    _ = sample.remote  # which checks address, size and hash
    if not suffix_of(sample.file) or not (isinstance(sample.size, int) and sample.size > 0) or not sample.licence:
        raise ValueError(f"{sample.key} needs the suffix of a volume, a size in bytes and a licence")
    return sample


def _place(sample: PublicSample) -> Path:
    return samples_folder() / sample.key

"""Models that others publish: where they are, under which licence, and what becomes of them here.

An entry is a TOML file in resources/published. It is added only after the file's SHA-256, size and licence were seen by
the person who adds it. Listing entries fetches nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from napari_fmseg.core.errors import UnknownModel
from napari_fmseg.core.package import data_folder
from napari_fmseg.core.structuring import is_file_name, read_table, structure
from napari_fmseg.models.card import ModelCard
from napari_fmseg.models.published.download import RemoteFile
from napari_fmseg.models.registry import list_models

__all__ = ["FORMATS", "PublishedModel", "find_published", "list_published", "not_downloaded", "read_published"]

FORMATS = ("tfjs", "nnunet")


@dataclass(frozen=True)
class PublishedModel:
    """A model of somebody else's that may be downloaded and runs here.

    Parameters
    ----------
    name
        What it is called here, once it was downloaded.
    title
        What it segments, in a line.
    format
        ``"tfjs"``: a MeshNet as TensorFlow.js stores it; ``"nnunet"``: a zip of nnU-Net v2.
    files
        What is downloaded.
    segments
        The structures, in words.
    licence, citation
        Of the weights; the paper, and who published them.
    source
        The page where they are described.
    trained_on, limits
        The data, and for whom the model fails.
    evidence
        Who saw the files' hashes, where.
    modality, body_part
        ``"CT"``, ``"MR"`` or ``"PET"``; where in the body.
    card
        Further fields of the model's card.
    axes
        To where the axes of the kernels run, in their order, such as ``"LIA"`` (left, inferior, anterior); tfjs only.
    """

    name: str
    title: str
    format: str
    files: tuple[RemoteFile, ...]
    segments: str
    licence: str
    citation: str
    source: str
    trained_on: str
    limits: str
    evidence: str
    modality: str = ""
    body_part: str = ""
    card: Mapping[str, Any] = field(default_factory=dict)
    axes: str = ""

    def __post_init__(self) -> None:
        if not is_file_name(self.name) or self.format not in FORMATS or not self.files:
            raise ValueError(f"{self.name!r} needs a plain name, a format ({' or '.join(FORMATS)}) and files")
        empty = [name for name in ("title", "segments", "licence", "citation", "source", "trained_on", "limits",
                                   "evidence") if not getattr(self, name).strip()]  # fmt: skip
        if empty:
            raise ValueError(f"{self.name} does not state its {empty[0]}")

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(one.size for one in self.files)

    @property
    def hosts(self) -> tuple[str, ...]:
        """The machines that it comes from."""
        return tuple(dict.fromkeys(host for one in self.files for host in (one.host, *one.hosts)))

    @property
    def card_fields(self) -> dict[str, Any]:
        """The fields of the model's card that the entry states and its files do not."""
        names = ("name", "title", "modality", "body_part", "licence", "citation", "trained_on", "limits")
        return {name: getattr(self, name) for name in names}

    def as_card(self) -> ModelCard:
        """Return the card of a model whose files hold weights only; without its network, which they name."""
        return structure(ModelCard, {"pipeline": "single", "nets": {}, **self.card, **self.card_fields})

    def terms(self) -> str:
        """Return what a user should know before the download, in lines of ``what: text``."""
        return "\n".join((
            f"Model: {self.title} ({self.name})",
            f"Licence: {self.licence}",
            f"Size: {self.size / 1e6:.1f} MB",
            f"From: {', '.join(self.hosts)}",
            "Nothing is sent but the request for these files; their SHA-256 is checked.",
            f"Segments: {self.segments.strip()}",
            f"Limits: {self.limits.strip()}",
            f"Trained on: {self.trained_on.strip()}",
            f"Citation: {self.citation.strip()}",
            *(f"Address: {one.url}" for one in self.files),
        ))  # fmt: skip


def list_published() -> tuple[PublishedModel, ...]:
    """List the models that can be downloaded, by name."""
    found = [read_published(path) for path in sorted((data_folder("resources") / "published").glob("*.toml"))]
    return tuple(sorted(found, key=lambda one: one.name))


def not_downloaded() -> tuple[PublishedModel, ...]:
    """List the models that can be downloaded and are not among the models of this machine."""
    here = {card.name for card in list_models()}
    return tuple(one for one in list_published() if one.name not in here)


def find_published(name: str) -> PublishedModel:
    """Find an entry by its name; `UnknownModel` if there is none, with those that there are."""
    entries = {entry.name: entry for entry in list_published()}
    if name not in entries:
        raise UnknownModel(
            f"There is no published model {name!r} to download. Choose one of: {', '.join(entries) or 'none'}. "
            "Models on this machine are listed by `fmseg models`."
        )
    return entries[name]


def read_published(path: Path) -> PublishedModel:
    """Read an entry; `UnknownModel` if something in it is missing, unknown or not to be trusted."""
    try:
        return structure(PublishedModel, read_table(path, toml=True))
    except (OSError, ValueError, UnknownModel) as error:
        raise UnknownModel(f"{path.name} is no entry of a published model: {error}. Correct it.") from error

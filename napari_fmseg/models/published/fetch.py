"""A published model from its address into the list of models: downloaded, checked, converted, installed."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Generator
from pathlib import Path

from napari_fmseg.core.events import Progress
from napari_fmseg.core.temporary_files import passing_name
from napari_fmseg.models.archive import install_model
from napari_fmseg.models.card import ModelCard
from napari_fmseg.models.published.download import download
from napari_fmseg.models.published.registry import PublishedModel

__all__ = ["fetch_published"]


def fetch_published(
    model: PublishedModel, folder: Path | str | None = None, *, replace: bool = False
) -> Generator[Progress, None, ModelCard]:
    """Download a published model, after the user agreed, and install it; afterwards it is listed as any other.

    Ending the iterator early ends the download and leaves nothing behind. Nothing that the files hold is executed.

    Parameters
    ----------
    model
        The entry.
    folder
        Where to; by default the folder of the user's own models.
    replace
        Take it in place of another model of its name.

    Yields
    ------
    Progress
        In bytes of all files.

    Returns
    -------
    ModelCard
        Of the installed model.

    Raises
    ------
    FmsegError
        If the download fails, or there is another model of that name and `replace` is False.
    WeightsMismatch
        If the files are not what the entry says.
    """
    place = Path(tempfile.gettempdir()) / passing_name()  # which a later process removes if this one is killed
    place.mkdir()
    try:
        done = 0
        for file in model.files:
            for event in download(file, place, model.title):
                yield Progress("download", done + event.done, model.size)
            done += file.size
        return install_model(_convert(model, place), folder, replace=replace)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _convert(model: PublishedModel, place: Path) -> ModelCard:
    """Convert the downloaded files; the card is the entry's, with what the files themselves state."""
    if model.format == "tfjs":
        from napari_fmseg.models.published.tfjs import convert_meshnet

        return convert_meshnet(place, model.as_card(), model.axes)
    from napari_fmseg.models.nnunet import import_nnunet

    (found,) = import_nnunet(place / model.files[0].file, place / "converted").cards
    return dataclasses.replace(found, **model.card_fields)

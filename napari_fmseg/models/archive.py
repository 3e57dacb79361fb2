"""A model as one file: a zip with its card and its weights, whose hash is checked where it arrives."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

from napari_fmseg.core.atomic_write import atomic_write
from napari_fmseg.core.errors import FmsegError, UnknownModel, WeightsMismatch
from napari_fmseg.models.card import ModelCard, read_card, write_card
from napari_fmseg.models.folders import user_models_folder
from napari_fmseg.models.registry import find_card

__all__ = ["export_model", "import_model", "install_model"]

_LARGEST_CARD = 1 << 20


def export_model(model: str | Path | ModelCard, path: Path | str) -> Path:
    """Write a model as one file.

    Parameters
    ----------
    model
        A model's name, the path of its card, or a card.
    path
        Where to; ends in ``.zip``.

    Raises
    ------
    UnknownModel
        If there is no such model.
    WeightsMismatch
        If its weights are missing or are not those that its card describes.
    UnwritableVolume
        If the place cannot be written.
    """
    card = model if isinstance(model, ModelCard) else find_card(model)
    path = Path(path)
    if path.suffix.lower() != ".zip":
        raise FmsegError(f"{path.name} would be a zip and must end so. Use {path.name}.zip.")
    weights = card.weights_path.read_bytes()
    found = hashlib.sha256(weights).hexdigest()
    _check(found, card)
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "card.toml"
        write_card(dataclasses.replace(card, weights=f"{card.name}.safetensors", sha256=found), text)
        with atomic_write(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as packed:
            # A fixed time, so that the same model gives the same file.
            packed.writestr(zipfile.ZipInfo(f"{card.name}.toml"), text.read_bytes())
            packed.writestr(zipfile.ZipInfo(f"{card.name}.safetensors"), weights)
    return path


def import_model(path: Path | str, folder: Path | str | None = None, *, replace: bool = False) -> ModelCard:
    """Import a model from one file into the user's models; it is listed at once.

    Parameters
    ----------
    path
        What `export_model` wrote.
    folder
        Where to; by default the folder of the user's own models.
    replace
        Take it in place of another model of its name.

    Raises
    ------
    WeightsMismatch
        If it is no such file, or the weights are not those that the card describes.
    UnknownModel
        If the card makes no sense.
    FmsegError
        If there is another model of that name.
    """
    path = Path(path)
    with tempfile.TemporaryDirectory() as place:
        try:
            with zipfile.ZipFile(path) as packed:
                card_name, weights_name = _names(packed, path)
                for name in (card_name, weights_name):
                    with packed.open(name) as source, (Path(place) / name).open("wb") as target:
                        shutil.copyfileobj(source, target)
        except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
            raise WeightsMismatch(
                f"{path.name} is damaged or no model file: {error}. Export the model again, or copy the file again."
            ) from error
        card = read_card(Path(place) / card_name)
        if not card.sha256:
            raise WeightsMismatch(f"The card in {path.name} has no hash of its weights, so they cannot be trusted.")
        return install_model(dataclasses.replace(card, weights=weights_name), folder, replace=replace)


def _names(packed: zipfile.ZipFile, path: Path) -> tuple[str, str]:
    """Return the names of the card and the weights; the file may hold nothing else."""
    infos = packed.infolist()
    cards = [i for i in infos if i.filename.endswith(".toml") and i.file_size <= _LARGEST_CARD]
    weights = [i for i in infos if i.filename.endswith(".safetensors") and i.compress_type == zipfile.ZIP_STORED]
    plain = all(_is_plain(info.filename) for info in infos)
    if len(infos) != 2 or len(cards) != 1 or len(weights) != 1 or not plain:
        raise WeightsMismatch(
            f"{path.name} is not the file of a model. Expected a zip with one card (.toml) and its weights "
            "(.safetensors), as `fmseg models export` writes it."
        )
    return cards[0].filename, weights[0].filename


def install_model(card: ModelCard, folder: Path | str | None = None, *, replace: bool = False) -> ModelCard:
    """Copy a model into the user's models, so that it is listed; atomically.

    Parameters
    ----------
    card
        Its weights are found and checked.
    folder
        By default the folder of the user's own models.
    replace
        Take it in place of another model of its name.

    Raises
    ------
    WeightsMismatch
        If the weights are missing or not those that the card describes.
    FmsegError
        If there is another model of that name and `replace` is False.
    """
    if not _is_plain(card.name):
        raise UnknownModel(f"{card.name!r} cannot be the name of a model: it would be a folder or a hidden file.")
    source = card.weights_path
    found = hashlib.sha256(source.read_bytes()).hexdigest()
    _check(found, card)
    place = (user_models_folder() if folder is None else Path(folder)) / card.name
    there = place / f"{card.name}.toml"
    before = read_card(there) if there.exists() else None
    if before is not None and before.sha256 != found and not replace:
        raise FmsegError(
            f"There is another model {card.name!r} of yours, version {before.version}. Say that it is to be replaced "
            "(--replace), or rename one of them."
        )
    # Weights of another hash get another name, and the card comes last: at no moment do the two disagree.
    weights = f"{card.name}-{found[:12]}.safetensors"
    with source.open("rb") as content, atomic_write(place / weights) as file:
        shutil.copyfileobj(content, file)
    written = dataclasses.replace(card, weights=weights, sha256=found, folder=place)
    write_card(written, there)
    for old in place.glob(f"{card.name}-*.safetensors"):
        if old.name != weights:
            old.unlink()
    return written


def _is_plain(name: str) -> bool:
    return bool(name) and name == PurePosixPath(name).name and "\\" not in name and not name.startswith(".")


def _check(found: str, card: ModelCard) -> None:
    if card.sha256 and found != card.sha256:
        raise WeightsMismatch(
            f"The weights are not those that the card of {card.name!r} describes: their sha256 starts with "
            f"{found[:12]}, expected {card.sha256[:12]}. They were altered or only partly copied; get the model again."
        )

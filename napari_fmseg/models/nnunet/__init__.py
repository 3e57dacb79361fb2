"""Import of models that nnU-Net v2 trained: from a results folder or an exported zip to weights and a model card."""

from __future__ import annotations

import dataclasses
import os
import re
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from napari_fmseg.core.errors import FmsegError, UnknownModel, WeightsMismatch
from napari_fmseg.core.structuring import read_table
from napari_fmseg.io.zip_archive import unzip
from napari_fmseg.models.archive import install_model
from napari_fmseg.models.card import ModelCard, NetSpec
from napari_fmseg.models.nnunet.checkpoint import Checkpoint, network_of, read_nnunet_checkpoint
from napari_fmseg.models.nnunet.plans import (
    Configuration,
    configuration_names,
    foreground_labels,
    previous_stage,
    read_configuration,
)
from napari_fmseg.models.weights import save_model

__all__ = ["Imported", "import_nnunet", "is_nnunet"]

_CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_best.pth", "checkpoint_latest.pth")
_V1 = ("plans.pkl", "model_final_checkpoint.model")
_DEEPEST = 6
_MOST_ENTRIES = 20_000  # of a folder that is not yet known to be a model
_MODALITIES = {"ct": "CT", "pet": "PET", "pt": "PET", **dict.fromkeys(
    ("mri", "mr", "t1", "t1w", "t1c", "t1ce", "t1gd", "t2", "t2w", "flair", "adc", "dwi"), "MR")}  # fmt: skip


@dataclass(frozen=True)
class Imported:
    """What came out of a folder or a zip.

    Attributes
    ----------
    cards
        The models, now among the user's own.
    refused
        Why others in it were not taken, a sentence each.
    """

    cards: tuple[ModelCard, ...]
    refused: tuple[str, ...] = ()


def is_nnunet(path: Path | str) -> bool:
    """Return whether a folder or a zip looks like nnU-Net's: a plans file, and a checkpoint of a fold."""
    path = Path(path)
    if path.is_dir():
        return bool(_model_folders(path)) or _is_v1(p.name for p in _files(path))
    try:
        with zipfile.ZipFile(path) as archive:
            names = [PurePosixPath(name.replace("\\", "/")).name for name in archive.namelist()]
    except (OSError, zipfile.BadZipFile):
        return False
    return ("plans.json" in names and any(name in names for name in _CHECKPOINTS)) or _is_v1(names)


def import_nnunet(path: Path | str, folder: Path | str | None = None, *, replace: bool = False) -> Imported:
    """Import every model in a results folder of nnU-Net v2, or in a zip of it; they are listed at once.

    Nothing that the files hold is executed: checkpoints are read as tensors and plain values only.

    Parameters
    ----------
    path
        The folder of a model, of one of its folds (only that one is taken), one above it, or a zip as
        nnUNetv2_export_model_to_zip writes it.
    folder
        Where to; by default the folder of the user's own models.
    replace
        Take them in place of other models of their names.

    Raises
    ------
    UnknownModel
        If there is no model in it that can be run here; says why.
    WeightsMismatch
        If a checkpoint is damaged, or holds anything but tensors and plain values.
    UnreadableVolume
        If the zip is damaged, or has names that lead out of it.
    FmsegError
        If there is another model of that name and `replace` is False.
    """
    path = Path(path)
    with ExitStack() as stack:
        place = path if path.is_dir() else stack.enter_context(unzip(path))
        fold = place.name if _is_fold(place) else ""
        found = _model_folders(place)
        if not found:
            raise UnknownModel(_nothing_in(path, place))
        cards: list[ModelCard] = []
        refused: list[FmsegError] = []
        for one in found:
            try:
                card = _import_one(_Source.read(one, fold), one, found, folder, replace)
            except (UnknownModel, WeightsMismatch) as error:
                refused.append(error)
            else:
                cards.append(card)
        if not cards:
            raise refused[0]
        return Imported(tuple(cards), tuple(map(str, refused)))


def _nothing_in(path: Path, place: Path) -> str:
    if _is_v1(file.name for file in _files(place)):
        return f"{path.name} was made by nnU-Net v1, whose models cannot be imported. Train or convert it with v2."
    return (
        f"There is no model of nnU-Net v2 in {path.name}. Expected a folder with plans.json, dataset.json and "
        "fold_0/checkpoint_final.pth, or a zip of it."
    )


def _is_v1(names: Any) -> bool:
    return any(name in _V1 for name in names)


def _files(place: Path) -> list[Path]:
    """Return the files below a folder, not deeper than a results folder has them, and not without end."""
    found: list[Path] = []
    for folder, inner, names in os.walk(place):  # which follows no link
        found += [Path(folder, name) for name in names]
        if len(Path(folder).relative_to(place).parts) >= _DEEPEST or len(found) > _MOST_ENTRIES:
            inner.clear()
        inner.sort()
    return sorted(found)


def _model_folders(place: Path) -> list[Path]:
    """Return the folders with plans and folds, at any depth; the parent's, if the folder of a fold is given."""
    if _is_fold(place):
        return [place.parent]
    folders = [file.parent for file in _files(place) if file.name == "plans.json"]
    return [one for one in folders if (one / "dataset.json").is_file() and _folds(one)]


def _is_fold(place: Path) -> bool:
    return _checkpoint_in(place) is not None and all(
        (place.parent / name).is_file() for name in ("plans.json", "dataset.json")
    )


def _folds(folder: Path, only: str = "") -> list[Path]:
    """Return the checkpoints: of all numbered folds, or of the one that was trained on everything."""
    numbered = sorted(folder.glob(only or "fold_[0-9]*"), key=lambda one: (len(one.name), one.name))
    found = [_checkpoint_in(one) for one in numbered]
    checkpoints = [one for one in found if one is not None]
    everything = _checkpoint_in(folder / "fold_all")
    return checkpoints or ([everything] if everything is not None else [])


def _checkpoint_in(fold: Path) -> Path | None:
    return next((fold / name for name in _CHECKPOINTS if (fold / name).is_file()), None)


@dataclass(frozen=True)
class _Source:
    """A model folder, read."""

    plans: Mapping[str, Any]
    dataset: Mapping[str, Any]
    plan: Configuration
    folds: Sequence[Checkpoint]
    only: str = ""

    @classmethod
    def read(cls, folder: Path, only: str = "") -> _Source:
        try:
            plans, dataset = read_table(folder / "plans.json"), read_table(folder / "dataset.json")
        except (OSError, ValueError) as error:
            raise UnknownModel(f"plans.json or dataset.json of {folder.name} cannot be read: {error}.") from error
        folds = [read_nnunet_checkpoint(path) for path in _folds(folder, only)]
        if folds[0].configuration not in configuration_names(plans):
            raise UnknownModel(f"plans.json of {folder.name} has no configuration {folds[0].configuration!r}.")
        return cls(plans, dataset, read_configuration(plans, dataset, folds[0].configuration), folds, only)

    @property
    def previous(self) -> str:
        return previous_stage(self.plans, self.folds[0].configuration)

    def settings(self, **more: Any) -> dict[str, Any]:
        """Return the settings that differ from the defaults, as a card has them."""
        mirror = tuple(axis + self.plan.settings.sees_slices for axis in self.folds[0].mirror)
        whole = dataclasses.asdict(dataclasses.replace(self.plan.settings, mirror=mirror, **more))
        return {name: value for name, value in whole.items() if value not in ((), {})}

    def networks(self, part: str) -> tuple[dict[str, NetSpec], dict[str, Any]]:
        """Return the networks of all folds, as a card names them and as they are."""
        from napari_fmseg.nets import build

        specs, nets = {}, {}
        for number, fold in enumerate(self.folds, 1):
            name, kwargs, state = network_of(fold, self.plan)
            net = build(name, **kwargs)
            _check_fit(fold, {k: v.shape for k, v in net.state_dict().items()}, {k: v.shape for k, v in state.items()})
            net.load_state_dict(state)
            key = part if number == 1 else f"{part}-{number}"
            specs[key], nets[key] = NetSpec(name, kwargs), net
        _check_sizes(next(iter(nets.values())), self.plan)
        return specs, nets


def _check_fit(fold: Checkpoint, expected: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    if expected != found:
        missing, surplus = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
        differ = [key for key in sorted(expected.keys() & found.keys()) if expected[key] != found[key]]
        raise WeightsMismatch(
            f"The trainer {fold.trainer!r} made a network that cannot be run here: missing {missing[:3]}, surplus "
            f"{surplus[:3]}, other shapes {differ[:3]}. Run the model with the program that made it."
        )


def _check_sizes(net: Any, plan: Configuration) -> None:
    import torch

    net.check(torch.empty((1, net.in_channels, *plan.settings.window), device="meta"))


def _import_one(
    source: _Source, folder: Path, everything: Sequence[Path], target: Path | str | None, replace: bool
) -> ModelCard:
    specs, nets = source.networks("windows")
    more: dict[str, Any] = {}
    if source.previous:
        lower = _lower_stage(folder, source, everything)
        others, built = lower.networks("lowres")
        specs, nets = {**others, **specs}, {**built, **nets}
        more = {"lowres": lower.settings(), "previous": foreground_labels(source.dataset)}
    expected = len(source.plan.channels) + len(more.get("previous", ()))
    found = specs["windows"].kwargs["in_channels"]
    if found != expected:
        raise UnknownModel(f"The network takes {found} channels, but {expected} were expected from plans.json.")
    with tempfile.TemporaryDirectory() as place:
        return install_model(save_model(_card(source, specs, more), nets, place), target, replace=replace)


def _lower_stage(folder: Path, source: _Source, everything: Sequence[Path]) -> _Source:
    """Find and read the earlier stage of a cascade: beside it, or elsewhere in what was given."""
    places = [one for one in everything if one != folder]
    places += [one for one in sorted(folder.parent.iterdir()) if one.is_dir() and one not in [folder, *everything]]
    for place in places:
        if place.name.endswith(f"__{source.previous}") and (place / "plans.json").is_file() and _folds(place):
            lower = _Source.read(place)
            if lower.plan.dataset == source.plan.dataset:
                if lower.plan.intensity != source.plan.intensity or lower.plan.channels != source.plan.channels:
                    raise UnknownModel("The two stages of this cascade normalise images in different ways.")
                return lower
    raise UnknownModel(
        f"{source.folds[0].configuration} of {source.plan.dataset} is the second stage of a cascade; the first one, "
        f"{source.previous}, is not there. Export both configurations together."
    )


def _card(source: _Source, specs: Mapping[str, NetSpec], more: Mapping[str, Any]) -> ModelCard:
    plan, first = source.plan, source.folds[0]
    dataset = re.sub(r"^Dataset\d+_", "", plan.dataset)
    parts = [dataset, first.configuration, source.only]
    parts += [first.trainer] if first.trainer != "nnUNetTrainer" else []
    parts += [plan.plans] if plan.plans != "nnUNetPlans" else []
    name = re.sub(r"[^a-z0-9]+", "-", " ".join(parts).lower()).strip("-")
    kinds = {_MODALITIES.get(channel.lower(), "") for channel in plan.channels}
    spacing = plan.settings.spacing_mm
    return ModelCard(
        name=name or "nnunet",
        title=f"{dataset} ({first.configuration}, nnU-Net)",
        pipeline="nnunet",
        nets=specs,
        labels=plan.labels,
        modality=next(iter(kinds)) if len(kinds) == 1 else "",
        channels=plan.channels,
        spacing_mm=() if plan.settings.sees_slices else spacing,
        intensity=plan.intensity,
        settings=source.settings(**more),
        licence=plan.licence or "unknown: ask the authors before you pass it on",
        citation=plan.reference,
        trained_on=f"{plan.dataset}, by nnU-Net v2 ({first.trainer}, {plan.plans}, {len(source.folds)} fold(s))",
        limits="Imported; nobody has measured it here. Voxels are used in the order of the file, as nnU-Net does."
        if plan.settings.orientation == "file" else "Imported; nobody has measured it here.",
    )  # fmt: skip

"""The commands about models: ``fmseg models``, its sub-commands, and ``fmseg convert``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from napari_fmseg.cli.console import USE, Json, Output, ProjectFolder, confirm, note, number, say, table, write_json
from napari_fmseg.cli.progress import follow
from napari_fmseg.core.errors import FmsegError

if TYPE_CHECKING:
    from napari_fmseg.models.card import ModelCard
    from napari_fmseg.models.fit import Fit

__all__ = ["MODEL_COMMANDS", "convert", "models"]


def models(
    *,
    volume: Annotated[tuple[Path, ...], arg(name="for", metavar="FILE")] = (),
    series: str | None = None,
    as_json: Json = False,
) -> int:
    """List the models: what each segments, how well, and what its licence allows.

    `fmseg models get` downloads one that others publish. `export` and `import` carry models between machines;
    `rollback` returns to an earlier version.

    Parameters
    ----------
    volume
        List which models fit this volume, the best first, and why the others do not. For models of several channels
        give one file for each, in their order.
    series
        Which series of a DICOM folder that holds several.
    """
    from napari_fmseg.models.published import not_downloaded
    from napari_fmseg.models.registry import list_models

    cards = list_models()
    if volume:
        return _list_fits(cards, volume, series, as_json)
    if as_json:
        write_json(
            [
                {**dataclasses.asdict(c), "mean_dice": c.mean_dice, "patients": c.n_scored, "where": _where(c)}
                for c in cards
            ]
        )
        return 0
    if not cards:
        note("No model is installed. `fmseg doctor` lists what to do; `fmseg train` makes one.")
        return 0
    say(table(
        ("MODEL", "MODALITY", "DICE", "95 % INTERVAL", "PATIENTS", "LICENCE", "WHERE", "SEGMENTS"),
        [(c.name, c.modality or "-", *_dice(c, interval=True), c.licence or "-", _where(c),
          ", ".join(c.labels.values()))
         for c in cards],
    ))  # fmt: skip
    for card in cards:
        half = str(card.half_precision or "")
        for kind, text in (("restricted", card.restriction), ("limits", card.limits), ("half precision", half)):
            if text:
                say(f"\n{card.name}, {kind}: {text}")
    for model in not_downloaded():
        say(f"\nTo download: {model.name}, {model.title} ({model.size / 1e6:.1f} MB). Licence: {model.licence}. "
            f"`fmseg models get {model.name}` shows what it is and asks first.")  # fmt: skip
    say(f"\nDice: mean over the classes, on so many patients who were not trained on (--json has each). {USE}")
    return 0


def _list_fits(cards: Sequence[ModelCard], files: Sequence[Path], series: str | None, as_json: bool) -> int:
    """List the models by how well they fit a volume."""
    from napari_fmseg.io import read_volume
    from napari_fmseg.io.channels import read_channels
    from napari_fmseg.models.fit import Fit, find_misfits, rank
    from napari_fmseg.models.measures import measure_volume

    read = read_channels(files) if len(files) > 1 else read_volume(files[0], series=series)
    measures = measure_volume(read)
    fits = rank(Fit(card, find_misfits(measures, read.meta, card)) for card in cards)
    if as_json:
        write_json([{"name": fit.card.name, "fits": not fit.misfits, "usable": fit.is_usable,
                     "mean_dice": fit.card.mean_dice, "patients": fit.card.n_scored, "labels": fit.card.labels,
                     "misfits": [dataclasses.asdict(misfit) for misfit in fit.misfits]} for fit in fits])  # fmt: skip
        return 0
    say(table(
        ("MODEL", "FITS", "DICE", "PATIENTS", "SEGMENTS"),
        [(fit.card.name, _verdict(fit), *_dice(fit.card), ", ".join(fit.card.labels.values()))
         for fit in fits],
    ))  # fmt: skip
    for fit in fits:
        if fit.misfits:
            more = f" (and {len(fit.misfits) - 1} more: --json)" if len(fit.misfits) > 1 else ""
            say(f"\n{fit.card.name}: {fit.misfits[0].text}{more}")
    if not any(fit.is_usable for fit in fits):
        note("No model here fits this volume.")
    say(f"\nFits: like the volumes that the model was trained on. {USE}")
    return 0


def _dice(card: ModelCard, *, interval: bool = False) -> tuple[str, ...]:
    """Return the mean Dice and of how many patients it is; no Dice where nobody states of how many."""
    between = (card.validation.overall.interval or "-" if card.validation else "-",) if interval else ()
    return (
        (number(card.mean_dice), *between, str(card.n_scored)) if card.n_scored else ("-", *["-"] * len(between), "-")
    )


def _verdict(fit: Fit) -> str:
    """Return in a word whether a model fits."""
    return "no" if not fit.is_usable else "with care" if fit.misfits else "yes"


def _where(card: Any) -> str:
    from napari_fmseg.core.errors import WeightsMismatch
    from napari_fmseg.models.folders import user_models_folder

    try:
        weights = card.weights_path
    except WeightsMismatch:
        return "weights missing"
    if user_models_folder() in card.folder.parents or card.folder == user_models_folder():
        return "yours"
    return "research" if weights.parent.name == "research" else "shipped"


def export(
    model: Positional[Annotated[str, arg(metavar="MODEL")]],
    /,
    *,
    output: Output,
) -> int:
    """Write a model as one file, for another machine.

    Parameters
    ----------
    model
        A model's name, the path of its card, or a project: its model in use.
    output
        NAME.zip.
    """
    from napari_fmseg.models.archive import export_model
    from napari_fmseg.models.registry import find_card
    from napari_fmseg.training.projects import active_version, open_project

    card = find_card(model) if not Path(model).is_dir() else None
    if card is None:
        version = active_version(open_project(model))
        if version is None:
            raise FmsegError(f"{model} has no model in use yet. Train one first.")
        card = version.card
    say(str(export_model(card, output)))
    if card.restriction:
        note(f"Its data restrict its use: {card.restriction}")
    return 0


def import_(
    file: Positional[Annotated[Path, arg(metavar="FILE.zip|FOLDER")]],
    /,
    *,
    replace: bool = False,
) -> int:
    """Install a model from one file; its hash is checked. Models of nnU-Net v2 are converted.

    Parameters
    ----------
    file
        A file written by `fmseg models export`, a results folder of nnU-Net v2, or a zip of one.
    replace
        Replace another model of yours with the same name.
    """
    from napari_fmseg.models.archive import import_model
    from napari_fmseg.models.nnunet import import_nnunet, is_nnunet

    if file.is_dir() or is_nnunet(file):
        done = import_nnunet(file, replace=replace)
        for reason in done.refused:
            note(f"Not imported: {reason}")
        cards = done.cards
    else:
        cards = (import_model(file, replace=replace),)
    for card in cards:
        say(f"{card.name}, version {card.version}: {', '.join(card.labels.values())}")
    return 0


def get(
    name: Positional[Annotated[str, arg(metavar="MODEL")]],
    /,
    *,
    accept_licence: Annotated[bool, arg(help="Accept the licence without being asked.")] = False,
    replace: bool = False,
) -> int:
    """Download a model that others publish, after you accepted its licence; its hash is checked.

    Nothing is downloaded at any other time. `fmseg models` lists what can be had.

    Parameters
    ----------
    name
        Its name.
    replace
        Replace another model of yours with the same name.
    """
    from napari_fmseg.models.published import fetch_published, find_published

    model = find_published(name)
    note(model.terms())
    if not accept_licence and not confirm("Download it under this licence?"):
        raise FmsegError(
            f"{name} was not downloaded: nobody accepted its licence. Answer with y, or add --accept-licence."
        )
    card = follow(fetch_published(model, replace=replace))
    say(f"{card.name}: {', '.join(card.labels.values())}")
    return 0


def join(
    cards: Positional[Annotated[tuple[str, ...], arg(metavar="MODEL...")]],
    /,
    *,
    output: Output,
) -> int:
    """Merge separately converted networks into one model, such as a coarse and a fine one.

    Parameters
    ----------
    cards
        The cards that `fmseg convert` wrote, or models by name.
    output
        Where to write: NAME.safetensors, with NAME.toml beside it.
    """
    from napari_fmseg.models.merge import join_models

    card = join_models(cards, output)
    say(f"{card.weights_path}\n{card.folder / f'{card.name}.toml'}")
    if card.restriction:
        note(f"Its data restrict its use: {card.restriction}")
    return 0


def rollback(
    folder: ProjectFolder,
    /,
    *,
    to: int = 0,
) -> int:
    """Return to the previously used version of a project's model; no version is ever deleted.

    Parameters
    ----------
    to
        Which version; 0 takes the previous one.
    """
    from napari_fmseg.training.projects import activate_version, open_project, publish, roll_back

    project = open_project(folder)
    project = activate_version(project, to) if to else roll_back(project)
    card = publish(project)
    say(f"{card.name}: version {project.index.used[-1]} is in use.")
    return 0


def convert(
    checkpoint: Positional[Annotated[Path, arg(metavar="CHECKPOINT|PROJECT")]],
    /,
    *,
    output: Output,
    network: str = "",
    to: Literal["fmseg", "nnunet"] = "fmseg",
    n_classes: int | None = None,
    in_channels: int | None = None,
    variant: str | None = None,
    width: int | None = None,
    widths: tuple[int, ...] | None = None,
    flat_levels: int | None = None,
    input_size: tuple[int, int, int] | None = None,
    new_heads: bool = False,
    part: str = "",
) -> int:
    """Convert a published checkpoint (.pt, .pth) to safetensors and a model card; code in it is never run.

    With `--to nnunet` a project becomes a data set that nnUNetv2_plan_and_preprocess accepts.

    Parameters
    ----------
    checkpoint
        As FMSF-PT ({net, optimizer, epoch}), MIS-FM ({model_state_dict, iteration}) or EfficientSegmentation
        ({state_dict, epoch}) saves it, or a plain state dict. With `--to nnunet` the folder of a project.
    output
        Where to write: NAME.safetensors, with NAME.toml beside it; with `--to nnunet` a folder DatasetNNN_NAME.
    network
        snet, attnnet, edgenet, fmunet, pctnet, baseunet, contextunet or efficientsegnet; of the last three the
        classes, channels and blocks are read from the checkpoint.
    to
        ``nnunet`` writes a project for nnU-Net.
    n_classes
        Classes that it was trained with, background included.
    in_channels
        Channels of the image.
    variant
        v1 (2022) or v2 (2023).
    width
        Channels of its levels (phased networks).
    widths
        Channels of its five levels (fmunet, pctnet).
    flat_levels
        Levels that convolve within slices only, 0 to 2 (fmunet, pctnet).
    input_size
        Patch z y x that it was trained with (pctnet).
    new_heads
        Where only the number of classes differs, initialise the last layers anew and load the rest.
    part
        Its name in the model; by default the stage that it serves: consensus, attention, edge; coarse, fine; net.
    """
    if to == "nnunet":
        from napari_fmseg.datasets.nnunet_export import export_for_nnunet

        say(str(export_for_nnunet(checkpoint, output)))
        return 0
    if not network:
        raise FmsegError("Which network is it? Name it with --network, or convert a project with --to nnunet.")
    from napari_fmseg.models.convert import convert_checkpoint

    given = {
        **{"n_classes": n_classes, "in_channels": in_channels, "variant": variant, "width": width},
        **{"widths": widths, "flat_levels": flat_levels, "input_size": input_size},
    }
    kwargs = {name: value for name, value in given.items() if value is not None}
    done = convert_checkpoint(checkpoint, network, output, part=part, new_heads=new_heads, **kwargs)
    say(f"{done.weights}\n{done.card}")
    if done.fresh:
        note(f"{len(done.taken)} tensors were taken. {len(done.fresh)} are new: {', '.join(done.fresh)}.")
    note("Fill in what the checkpoint does not hold: the card's comments list what is missing.")
    return 0


MODEL_COMMANDS: dict[str, Callable[..., int]] = {
    "export": export,
    "get": get,
    "import": import_,
    "join": join,
    "rollback": rollback,
}

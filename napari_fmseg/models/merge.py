"""Networks that came one by one, such as those of published checkpoints, put together into one model."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from napari_fmseg.core.errors import WeightsMismatch
from napari_fmseg.models.card import ModelCard
from napari_fmseg.models.settings import PIPELINES
from napari_fmseg.models.weights import Model, load_model, save_model

__all__ = ["join_models"]

_TEXTS = ("title", "modality", "body_part", "licence", "restriction", "citation", "trained_on", "limits")
_SAME = ("pipeline", "channels", "intensity", "settings")


def join_models(cards: Sequence[str | Path], out: Path | str) -> ModelCard:
    """Write one model that has the networks of several.

    Parameters
    ----------
    cards
        Models by name or by the path of their card. They must agree in pipeline, channels, intensity, settings and
        classes; a class that one of them calls by its number only takes the name that another has for it.
    out
        Where to write: NAME.safetensors, and NAME.toml beside it. What the cards say is kept, each sentence once.

    Raises
    ------
    WeightsMismatch
        If they do not go together, or a stage is missing between others.
    UnknownModel
        If one of them is no model.
    UnwritableVolume
        If the place cannot be written.
    """
    models = [load_model(card, device="cpu") for card in cards]
    if len(models) < 2:
        raise WeightsMismatch(f"{len(models)} model was given. Expected two or more, such as a coarse and a fine one.")
    first = models[0].card
    for name in _SAME:
        for model in models[1:]:
            if getattr(model.card, name) != getattr(first, name):
                raise WeightsMismatch(
                    f"{first.name} and {model.card.name} differ in {name}: {getattr(first, name)} and "
                    f"{getattr(model.card, name)}. Make their cards agree."
                )
    specs = {part: spec for model in models for part, spec in model.card.nets.items()}
    if len(specs) < sum(len(model.nets) for model in models):
        raise WeightsMismatch(
            f"Two of them bring a network of the same name ({', '.join(specs)}). Convert one of them with --part."
        )
    stages = PIPELINES[first.pipeline].stages
    had = [stage in specs for stage in stages]
    if had != sorted(had, reverse=True):
        raise WeightsMismatch(
            f"A {first.pipeline} model runs {', '.join(stages)} in this order, and only {', '.join(specs)} came. "
            "Convert the missing one, too."
        )
    texts: dict[str, Any] = {
        name: "\n".join(dict.fromkeys(filter(None, (getattr(m.card, name) for m in models)))) for name in _TEXTS
    }
    card = dataclasses.replace(
        first, name=Path(out).stem, nets=specs, labels=_labels(models), scores={}, surface={}, surface_mm=0.0,
        scored_on="", recipe_sha256="", parent="", cases=tuple(sorted({c for m in models for c in m.card.cases})),
        **(texts | {"title": Path(out).stem if first.title == first.name else first.title}),
    )  # fmt: skip
    nets = {part: net for model in models for part, net in model.nets.items()}
    return save_model(card, nets, Path(out).parent)


def _labels(models: Sequence[Model]) -> dict[int, str]:
    labels: dict[int, str] = {}
    for card in (model.card for model in models):
        if set(card.labels) != set(models[0].card.labels):
            raise WeightsMismatch(
                f"{models[0].card.name} has {len(models[0].card.labels)} classes, {card.name} has {len(card.labels)}. "
                "They must give the same ones."
            )
        for label, name in card.labels.items():
            known = labels.get(label, f"class {label}")
            if f"class {label}" not in (known, name) and known != name:
                raise WeightsMismatch(f"Class {label} is {known!r} in one card and {name!r} in {card.name}.")
            labels[label] = name if known == f"class {label}" else known
    return labels

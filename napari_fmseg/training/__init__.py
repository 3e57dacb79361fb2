"""Learning from labelled volumes: a recipe goes in, events come out, a model lies in a folder at the end."""

from __future__ import annotations

from napari_fmseg.training.pretrain_recipe import Fusion, PretrainRecipe, load_pretrain_recipe
from napari_fmseg.training.recipe import Augment, Case, Recipe, Replay, StageRecipe, cases_of, load_recipe

__all__ = [
    "Augment",
    "Case",
    "Fusion",
    "PretrainRecipe",
    "Recipe",
    "Replay",
    "StageRecipe",
    "cases_of",
    "load_pretrain_recipe",
    "load_recipe",
    "pretrain",
    "suggest_recipe",
    "train",
]


def __getattr__(name: str) -> object:
    if name == "train":  # torch and Fabric come only with the first training
        from napari_fmseg.training.loop import train

        return train
    if name == "pretrain":
        from napari_fmseg.training.pretraining import pretrain

        return pretrain
    if name == "suggest_recipe":
        from napari_fmseg.training.suggest import suggest_recipe

        return suggest_recipe
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

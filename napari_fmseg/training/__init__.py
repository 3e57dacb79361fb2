"""Learning from labelled volumes: a recipe goes in, events come out, a model lies in a folder at the end."""

from __future__ import annotations

from napari_fmseg.training.pretrain_recipe import Fusion, PretrainRecipe, load_pretrain_recipe
from napari_fmseg.training.recipe import Augment, Case, Recipe, StageRecipe, cases_of, load_recipe

__all__ = [
    "Augment",
    "Case",
    "Fusion",
    "PretrainRecipe",
    "Recipe",
    "StageRecipe",
    "cases_of",
    "load_pretrain_recipe",
    "load_recipe",
    "pretrain",
    "train",
]


def __getattr__(name: str) -> object:
    if name == "train":  # torch and Fabric come only with the first training
        from napari_fmseg.training.loop import train

        return train
    if name == "pretrain":
        from napari_fmseg.training.pretraining import pretrain

        return pretrain
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

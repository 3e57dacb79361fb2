"""Training on labelled volumes: takes a recipe, yields events, and writes a model into the folder of the run."""

from __future__ import annotations

from napari_fmseg.datasets.case import Case
from napari_fmseg.datasets.nnunet_raw import cases_of
from napari_fmseg.training.pretraining.recipe import Fusion, PretrainRecipe, load_pretrain_recipe
from napari_fmseg.training.recipe import Augment, Recipe, Replay, StageRecipe
from napari_fmseg.training.recipe_file import load_recipe

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
        from napari_fmseg.training.pretraining.loop import pretrain

        return pretrain
    if name == "suggest_recipe":
        from napari_fmseg.training.planner import suggest_recipe

        return suggest_recipe
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

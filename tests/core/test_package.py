"""Modules that moved can be imported by their previous names for one release."""

from __future__ import annotations

import sys

import pytest


def test_a_module_that_moved_is_the_same_under_its_previous_name_and_says_so() -> None:
    from napari_fmseg.core import errors

    sys.modules.pop("napari_fmseg.errors", None)
    with pytest.warns(DeprecationWarning, match="napari_fmseg.errors is now napari_fmseg.core.errors.*0.3.0"):
        from napari_fmseg.errors import FmsegError
    assert FmsegError is errors.FmsegError
    assert sys.modules["napari_fmseg.errors"] is errors
    assert errors.__spec__ is not None
    assert errors.__spec__.name == "napari_fmseg.core.errors"


def test_a_module_that_never_was_is_not_found() -> None:
    with pytest.raises(ModuleNotFoundError, match="nothing"):
        import napari_fmseg.nothing  # noqa: F401


def test_the_models_package_offers_what_the_module_of_that_name_did() -> None:
    import napari_fmseg.models as models

    assert {models.ModelCard.__name__, models.load_model.__name__} == {"ModelCard", "load_model"}
    with pytest.raises(AttributeError, match="nothing"):
        _ = models.nothing

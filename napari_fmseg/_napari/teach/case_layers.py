"""The layers of a case: shown when a case is opened, and recorded as its own when they become one."""

from __future__ import annotations

from typing import Any

from napari_fmseg._napari.choosers.image_volumes import cases_of
from napari_fmseg._napari.choosers.label_pairing import is_of, note_image
from napari_fmseg._napari.layer_transform import add_metadata, fmseg_metadata
from napari_fmseg._napari.opening.open_files import look_at
from napari_fmseg._napari.teach.jobs import EARLIER, FOUND, UNCERTAINTY, CaseLayers, NewCase
from napari_fmseg.training.projects import Project

__all__ = ["layers_of_case", "record_case", "show_case"]

_OUTLINE = 1  # voxel


def layers_of_case(viewer: Any, name: str, project: Project) -> list[Any]:
    """List the layers of a viewer that belong to a case of a project."""
    mine = {"case": name, "project": str(project.folder)}
    return [layer for layer in viewer.layers if mine.items() <= fmseg_metadata(layer).items()]


def record_case(what: NewCase, revision: Any) -> None:
    """Record on the layers that were added which case they are, so that later labels go to it.

    Parameters
    ----------
    what
        What was added. Its layers are used, not those that are chosen now: the user may have gone on.
    revision
        Of the case's labels in the project; None if the project is closed.
    """
    facts = {"case": what.name, "project": str(what.folder), "part": what.options.unlabelled}
    if revision is not None:
        facts["revision"] = revision
    image, labels = what.shown or (None, None)
    if image is not None and labels is not None:
        note_image(labels, image)
    for layer in (*(image.layers if image is not None else ()), labels):
        if layer is not None:
            add_metadata(layer, **facts)


def show_case(viewer: Any, project: Project, case: CaseLayers) -> None:
    """Add the layers of a case, unless they are there already, and hide those of other cases."""
    from napari.layers import Layer

    own = layers_of_case(viewer, case.name, project)
    roles = {layer: fmseg_metadata(layer).get("role") for layer in own}
    there = [layer for layer in own if roles[layer] not in (UNCERTAINTY, EARLIER, FOUND)]
    for layer in viewer.layers:
        if "case" in fmseg_metadata(layer) and roles.get(layer) != UNCERTAINTY:  # that map is as the user left it
            layer.visible = layer in there
    new = [] if any(layer._type_string == "image" for layer in there) else [*case.images]
    if case.uncertainty is not None and not {UNCERTAINTY, EARLIER} & {*roles.values()}:
        new.append(case.uncertainty)
    for data in new:
        viewer.add_layer(Layer.create(*data))
    labels = next((layer for layer in there if layer._type_string == "labels"), None)
    if labels is None:
        labels = Layer.create(*case.labels)
        home = next((one for one in cases_of(viewer.layers) if is_of(labels, one)), None)
        if home is not None:
            note_image(labels, home)
        viewer.add_layer(labels)
    if case.found is not None:
        _show_found(viewer, Layer.create(*case.found), [layer for layer in own if roles[layer] == FOUND])
    viewer.layers.selection.active = labels
    look_at(viewer, labels)


def _show_found(viewer: Any, layer: Any, before: list[Any]) -> None:
    """Add what a version found, as outlines over the labels, in place of what one before it found."""
    for old in before:
        viewer.layers.remove(old)
    layer.contour = _OUTLINE
    layer.opacity = 1.0
    viewer.add_layer(layer)

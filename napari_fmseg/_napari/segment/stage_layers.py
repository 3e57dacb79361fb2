"""The layers of a run: each stage is put in its place as it comes, a new run replaces the old, edits are kept."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from napari_fmseg._napari.layer_transform import fmseg_metadata, move_like
from napari_fmseg._napari.layers import KEY
from napari_fmseg._napari.segment.run_request import Run, StageLayer
from napari_fmseg._napari.segment.scan_view import attend

__all__ = ["ORDER", "StageLayers", "provenance_of", "run_of", "toggle_stages"]

ORDER = ("consensus", "attention map", "attention", "edge", "labels")
"""From the bottom to the top of the layer list; what is not named here stands before the labels."""


class StageLayers:
    """Keeps the layers of one run of one model on one image.

    A layer that somebody painted on since it was made is never replaced: it becomes the user's own, and the new result
    gets a name of its own beside it.
    """

    def __init__(self, viewer: Any, run: Run) -> None:
        self._viewer, self._run = viewer, run
        self._edited: set[str] = set()
        self._fresh: list[Any] = []
        self._watched: list[Any] = []
        self.kept: list[str] = []  # names of layers that were not replaced
        attend(viewer)
        for layer in self._mine():
            if "selected_label" in layer.events:
                layer.events.paint.connect(self._on_painted)
                self._watched.append(layer)

    def before(self) -> tuple[tuple[str, Any, int], ...]:
        """Return id, data and check sum of the labels of earlier runs, to find out which of them were edited."""
        return tuple((str(x.unique_id), x.data, int(provenance_of(x)["check_sum"])) for x in self._watched)

    def mark_edited(self, ids: Iterable[str]) -> None:
        """Record which layers of earlier runs were edited since."""
        self._edited |= set(ids)

    def place(self, staged: StageLayer) -> Any:
        """Show a stage: replace the layer of the same stage or add one, and hide the stages before it.

        Returns
        -------
        napari.layers.Layer
            The layer that shows it now.
        """
        old = next((layer for layer in self._mine() if provenance_of(layer)["stage"] == staged.stage), None)
        if old is None:
            layer = self._add(staged)
        elif str(old.unique_id) in self._edited:
            self._keep(old)
            layer = self._add(staged, over=old)
        else:
            layer = _replace_data(old, staged.layer)
        self._fresh.append(layer)
        for other in self._mine():
            if other is layer:
                _show(other, True)
            elif str(other.unique_id) not in self._edited:
                _show(other, False)
        return layer

    def finish(self) -> None:
        """End a run that came to its end: what an earlier run left and this one did not make is taken away."""
        for layer in self._mine():
            if not any(layer is fresh for fresh in self._fresh):
                if str(layer.unique_id) in self._edited:
                    self._keep(layer)
                else:
                    self._viewer.layers.remove(layer)
        self.release()

    def stop(self) -> None:
        """End a run that did not come to its end: the best that there is, perhaps of the run before, is shown."""
        layers = sorted(self._mine(), key=lambda layer: _rank(provenance_of(layer)["stage"]))
        if self._fresh:
            for layer in layers:
                _show(layer, layer is layers[-1])
        self.release()

    def release(self) -> None:
        """Stop watching; again does no harm."""
        for layer in self._watched:
            layer.events.paint.disconnect(self._on_painted)
        self._watched.clear()

    def _mine(self) -> list[Any]:
        return [layer for layer in self._viewer.layers if run_of(layer) == self._run]

    def _on_painted(self, event: Any) -> None:
        self._edited.add(str(event.source.unique_id))

    def _keep(self, layer: Any) -> None:
        """Leave an edited layer to the user from now on."""
        recorded = {key: value for key, value in layer.metadata[KEY].items() if key != "made"}
        layer.metadata = {**layer.metadata, KEY: recorded}
        self.kept.append(str(layer.name))

    def _add(self, staged: StageLayer, over: Any = None) -> Any:
        layer = staged.layer
        layer.name = _free_name(layer.name, self._viewer.layers)
        below = [
            i for i, other in enumerate(self._viewer.layers)
            if other is over
            or (run_of(other) == self._run and _rank(provenance_of(other)["stage"]) < _rank(staged.stage))
        ]  # fmt: skip
        active = self._viewer.layers.selection.active
        self._viewer.layers.insert(max(below) + 1 if below else len(self._viewer.layers), layer)
        self._viewer.layers.selection.active = active  # whoever paints on another layer goes on doing so
        return layer


def provenance_of(layer: Any) -> dict[str, Any]:
    """Return how one of our layers was made: image, model, region, stage, check_sum; empty for any other layer."""
    made = fmseg_metadata(layer).get("made")
    return made if isinstance(made, dict) else {}


def run_of(layer: Any) -> Run | None:
    """Return the run that a layer belongs to, or None."""
    made = provenance_of(layer)
    return Run(made["image"], made["model"], made["region"]) if made else None


def toggle_stages(viewer: Any, run: Run) -> None:
    """Show all layers of a run, or, when all of them are seen, only the last one."""
    layers = sorted((x for x in viewer.layers if run_of(x) == run), key=lambda x: _rank(provenance_of(x)["stage"]))
    show_all = not all(layer.visible for layer in layers)
    for layer in layers:
        layer.visible = show_all or layer is layers[-1]


def _rank(stage: str) -> int:
    return ORDER.index(stage) if stage in ORDER else len(ORDER) - 2


def _free_name(name: str, layers: Any) -> str:
    taken = {layer.name for layer in layers}
    names = [name, *(f"{name} ({i})" for i in range(2, len(taken) + 3))]
    return next(n for n in names if n not in taken)


def _show(layer: Any, shown: bool) -> None:
    """Show or hide a layer, if it is not so already: napari slices and draws anew at every assignment."""
    if layer.visible != shown:
        layer.visible = shown


def _replace_data(layer: Any, by: Any) -> Any:
    """Put the data of another layer into `layer`; its name, colours and opacity stay as the user set them."""
    layer.data = by.data
    move_like(layer, by)
    layer.metadata = {**layer.metadata, KEY: by.metadata[KEY]}
    return layer

"""Files and folders as layers: npe2's reader, and `layers_of`, which any thread may call."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from napari_fmseg._napari.layer_transform import fmseg_metadata
from napari_fmseg._napari.layers import LayerData
from napari_fmseg._napari.opening.format_detection import is_ours
from napari_fmseg._napari.opening.layer_data import (
    _series_of_file,
    distinct,
    layers_of,
    offers_instead,
    overlay_on,
    remarks_on,
)
from napari_fmseg.core.errors import UnreadableVolume

__all__ = ["NOTHING", "get_reader", "read", "watch_current_viewer"]

PathOrPaths: TypeAlias = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
NOTHING: list[tuple[None]] = [(None,)]
"""What npe2 takes for "read, but nothing to add"."""


def get_reader(path: PathOrPaths) -> Callable[[PathOrPaths], list[Any]] | None:
    """Return whether a path (or each of several) looks like ours, and what reads it; npe2 asks this.

    Parameters
    ----------
    path
        A file or folder, or several that were opened as a stack.

    Returns
    -------
    callable or None
        `read`, or None if another reader should be asked.
    """
    paths = _as_list(path)
    return read if paths and all(is_ours(Path(one)) for one in paths) else None


def read(path: PathOrPaths) -> list[Any]:
    """Read a file or folder, or several, each as layers of its own.

    Where a folder holds several series and there is a window, a dialog asks which.

    Returns
    -------
    list
        Layer data; `NOTHING` where the user chose none, or where a file belongs to a series that is open already.

    Raises
    ------
    UnreadableVolume
        If one cannot be read; without a window also if there are several series to choose from.
    """
    viewer = watch_current_viewer()
    layers: list[LayerData] = []
    for one in distinct(_as_list(path)):
        if viewer is not None and _is_open_already(one, viewer):
            continue
        layers += _read_one(one, viewer)
    for _, options, _ in layers if viewer is not None else ():
        options |= overlay_on(viewer, options.get("metadata", {}))
    if viewer is not None:
        from napari.utils.notifications import show_warning

        for remark in remarks_on(layers):
            show_warning(remark)
    return layers or NOTHING


def _as_list(path: PathOrPaths) -> list[str]:
    return [os.fspath(path)] if isinstance(path, str | os.PathLike) else [os.fspath(one) for one in path]


def _read_one(path: str, viewer: Any) -> list[LayerData]:
    try:
        return layers_of(path)
    except UnreadableVolume as error:
        if viewer is None:
            raise
        offers = offers_instead(path, error)
    from napari_fmseg._napari.common.viewer_window import window_of
    from napari_fmseg._napari.opening.series_dialog import choose

    layers = []
    for offer in choose(offers, window_of(viewer)):
        layers += layers_of(offer.path, series=offer.series, name=offer.description)
    return layers


def watch_current_viewer() -> Any:
    """Return the viewer whose window could ask the user, and watch what is painted in it from now on.

    None without one, or in another thread than the window's.
    """
    if "napari" not in sys.modules or "qtpy" not in sys.modules:
        return None
    from qtpy.QtCore import QThread
    from qtpy.QtWidgets import QApplication

    app = QApplication.instance()
    if app is None or app.thread() is not QThread.currentThread():
        return None
    import napari

    viewer = napari.current_viewer()
    if viewer is not None:
        from napari_fmseg._napari.recovery.autosave import Recovery

        Recovery.start(viewer)
    return viewer


def _is_open_already(path: str, viewer: Any) -> bool:
    """Return whether another file of the same series was opened: napari hands over dropped slices one by one."""
    uid = _series_of_file(Path(path))
    for layer in viewer.layers if uid else ():
        recorded = fmseg_metadata(layer)
        source = str(recorded.get("source") or "")
        is_same = (recorded.get("meta") or {}).get("series_uid") == uid
        if is_same and source != path and os.path.dirname(source) == os.path.dirname(path):
            viewer.status = f"{os.path.basename(path)} belongs to {layer.name}, which is open already."
            return True
    return False

"""Pictures of the queue, the View dock, the review of cases and the nnInteractive dock, for scripts/screenshots.py."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from screenshots import SEED, SIZE, Photographer, plain_folder, rest, wait


def views(folder: Path) -> None:
    """Write all pictures."""
    import napari

    folder.mkdir(parents=True, exist_ok=True)
    viewer = napari.Viewer(show=True)
    viewer.window.resize(*SIZE)
    napari.settings.get_settings().appearance.theme = "dark"
    camera = Photographer(viewer, folder)
    queue(viewer, camera)
    planes(viewer, camera)
    review(viewer, camera)
    viewer.close()


def queue(viewer: Any, camera: Photographer) -> None:
    """Segment three scans, one of them cut short, and open the first."""
    from napari_fmseg import phantom_ct, write_volume
    from napari_fmseg._napari.segment.queue_run import Wish

    with plain_folder() as place, tempfile.TemporaryDirectory() as home:
        os.environ["FMSEG_HOME"] = home
        (place / "results").mkdir()
        scans = [place / f"{name}.nii.gz" for name in ("first", "second", "third")]
        for i, scan in enumerate(scans):
            write_volume(phantom_ct(SEED + i, spacing=(6.0, 3.5, 3.5))[0], scan)
        scans[1].write_bytes(scans[1].read_bytes()[:4000])
        dock, widget = viewer.window.add_plugin_dock_widget("napari-fmseg", "Segment")
        widget.model.choose("fmsf-phantom-ct")
        widget.queue_section.button.setChecked(True)
        panel = widget.queue
        panel.queue.results = place / "results"
        panel.add([Wish(scan) for scan in scans])
        wait(lambda: len(panel.queue.scans) == 3)
        panel.start_button.click()
        wait(lambda: panel.queue.scans[2].state == "running" and "%" in panel.table.item(2, 2).text(), 600)
        panel.table.selectRow(1)
        widget._scroll.ensureWidgetVisible(panel.start_button)
        rest(0.2)
        camera.take("1-queue", widget)
        wait(lambda: not panel.queue.active and not panel.queue.running, 600)
        panel.table.selectRow(0)
        panel._on_clicked(0)
        wait(lambda: panel._opening is None and len(viewer.layers) == 2)
        widget._scroll.ensureWidgetVisible(panel.start_button)
        rest(1)
        camera.take("2-opened")
        dock.close()
        viewer.layers.clear()
        rest(0.5)


def planes(viewer: Any, camera: Photographer) -> None:
    """Show three planes of a CT with its labels, and paint in one."""
    import napari

    from napari_fmseg import phantom_ct
    from napari_fmseg._napari.layers import image_layers, labels_layer

    volume, labels = phantom_ct(SEED, spacing=(3.0, 1.7, 1.7))
    [(data, options, _)] = image_layers(volume, "CT")
    viewer.add_image(data, **options)
    data, options, _ = labels_layer(labels, "labels")
    layer = viewer.add_labels(np.ascontiguousarray(data), **options)
    dock, widget = viewer.window.add_plugin_dock_widget("napari-fmseg", "View")
    wait(lambda: widget.planes is not None)
    layer.selected_label = 0
    widget.next_button.click()
    wait(lambda: layer.selected_label > 0)
    viewer.reset_view()
    widget.reset_button.click()
    rest(1)
    camera.take("3-planes")
    widget.window_box.setCurrentIndex(2)
    widget.window_box.activated.emit(2)
    widget.opacity.setValue(30)
    napari.settings.get_settings().appearance.theme = "light"
    rest(1)
    camera.take("4-light")
    napari.settings.get_settings().appearance.theme = "dark"
    viewer.window.remove_dock_widget(dock)
    rest(0.3)
    dock, widget = viewer.window.add_plugin_dock_widget("napari-fmseg", "nnInteractive")
    rest(0.5)
    camera.take("6-nninteractive", widget)
    dock.close()
    viewer.layers.clear()
    rest(0.5)


def review(viewer: Any, camera: Photographer) -> None:
    """Review a predicted case."""
    from napari_fmseg import phantom_ct
    from napari_fmseg.core.volume import LabelMap
    from napari_fmseg.training.projects import ACCEPTED, add_case, init_project, review_case, save_prediction

    with tempfile.TemporaryDirectory() as temporary:
        os.environ["FMSEG_HOME"] = str(Path(temporary) / "fmseg")
        project = init_project(Path(temporary) / "abdomen", ("liver", "spleen"), channels=("CT",))
        for i in range(4):
            volume, labels = phantom_ct(SEED + i, spacing=(6.0, 3.5, 3.5))
            own = np.select([labels.data == 1, labels.data == 3], [1, 2], 0).astype(np.uint8)
            found = LabelMap(own, volume.geometry, {}, {1: "liver", 2: "spleen"})
            project = add_case(project, f"case-{i + 1:03d}", volume, found if i == 0 else None)
            if i:
                project = save_prediction(project, f"case-{i + 1:03d}", found, 1)
        project = review_case(project, "case-001", ACCEPTED)
        dock, widget = viewer.window.add_plugin_dock_widget("napari-fmseg", "Teach")
        widget.open_folder(project.folder)
        wait(lambda: widget.project is not None and widget._job is None)
        widget.pages.setCurrentIndex(3)
        widget.reviewing.next_button.click()
        wait(lambda: widget.reviewing.case != "" and widget._job is None)
        widget.reviewing.note.setPlainText("Spleen: check the hilum.")
        rest(1)
        camera.take("5-review")
        dock.close()
        viewer.layers.clear()

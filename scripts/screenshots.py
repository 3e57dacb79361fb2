"""Makes the pictures of docs/ by driving the real window on CT phantoms; scripts/screenshots calls it.

python scripts/screenshots.py tour|correct|pretrain|teach|pet|fit|nnunet|serve|published|views
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from qtpy.QtWidgets import QApplication

SIZE = (1280, 800)
SEED = 20261  # a patient that no model was trained on


def wait(done: Callable[[], bool], seconds: float = 120) -> None:
    """Let the window live until `done`."""
    end = time.monotonic() + seconds
    while not done():
        if time.monotonic() > end:
            raise TimeoutError("The window did not get there.")
        QApplication.processEvents()
        time.sleep(0.01)


def rest(seconds: float = 0.4) -> None:
    """Let the window draw what has changed."""
    end = time.monotonic() + seconds
    wait(lambda: time.monotonic() > end)


@contextlib.contextmanager
def plain_folder() -> Iterator[Path]:
    """Make a folder whose path can be shown, and remove it at the end."""
    folder = Path(tempfile.gettempdir()) / "demo"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


class Photographer:
    """Saves numbered pictures of the window."""

    def __init__(self, viewer: Any, folder: Path) -> None:
        self.viewer, self.folder = viewer, folder

    def take(self, name: str, widget: Any = None) -> None:
        """Save the whole window, or one widget."""
        from PIL import Image

        rest()
        path = self.folder / f"{name}.jpg"
        with tempfile.TemporaryDirectory() as temporary:
            raw = str(Path(temporary) / "raw.png")
            if widget is not None:
                widget.grab().save(raw)
            else:
                self.viewer.window.screenshot(raw, canvas_only=False, flash=False)
            picture = Image.open(raw).convert("RGB")
            picture.save(path, quality=88, optimize=True)
        print(path.name, picture.size, f"{path.stat().st_size / 1000:.0f} kB")


def tour(folder: Path) -> None:
    """Write all pictures."""
    import napari

    from napari_fmseg import phantom_ct, write_volume

    folder.mkdir(parents=True, exist_ok=True)
    viewer = napari.Viewer(show=True)
    viewer.window.resize(*SIZE)
    camera = Photographer(viewer, folder)
    with tempfile.TemporaryDirectory() as temporary:
        scan = Path(temporary) / "abdomen.nii.gz"
        write_volume(phantom_ct(SEED, spacing=(3.0, 1.7, 1.7))[0], scan)
        docks: dict[str, Any] = {}
        docks["Segment"], dock = viewer.window.add_plugin_dock_widget("napari-fmseg", "Segment")
        rest(1)
        camera.take("1-start")
        viewer.open(str(scan), plugin="napari-fmseg")
        image = viewer.layers[0]
        viewer.dims.set_point(0, float(image.translate[0] + image.scale[0] * 48))
        wait(lambda: dock.image.case is not None)
        dock.model.choose("fmsf-phantom-ct")
        camera.take("2-opened")
        for number, stage in enumerate(("consensus", "attention", ""), 3):
            dock.until.setCurrentIndex(dock.until.findData(stage))
            dock.bar.run_button.click()
            wait(lambda: dock.session.running, 5)
            wait(lambda: not dock.session.running)
            rest(1.5)
            camera.take(f"{number}-{stage or 'labels'}")
        heat = next(layer for layer in viewer.layers if "attention map" in layer.name)
        labels = viewer.layers.selection.active
        heat.visible, labels.visible = True, False
        camera.take("6-attention-map")
        heat.visible, labels.visible = False, True
        camera.take("7-classes", dock.classes)
        dock.three_d.click()
        camera.take("8-three-d")
        dock.three_d.click()
        viewer.window.add_plugin_dock_widget("napari-fmseg", "Export", tabify=True)
        rest(1)
        camera.take("9-export")
        docks["Doctor"], doctor = viewer.window.add_plugin_dock_widget("napari-fmseg", "Doctor", tabify=True)
        wait(lambda: bool(doctor.findings))
        shown = doctor.list.toHtml()  # without the folders of the machine that takes the pictures
        for hidden in (str(Path(__file__).parents[1]), os.environ.get("FMSEG_HOME", ""), temporary):
            shown = shown.replace(hidden, "…") if hidden else shown
        doctor.list.setHtml(shown)
        camera.take("10-doctor")
        docks["Segment"].raise_()
        broken = Path(temporary) / "broken.nii.gz"
        broken.write_bytes(scan.read_bytes()[:4000])
        dock.drop.dropped.emit([str(broken)])
        wait(lambda: bool(dock.error.isVisible()))
        camera.take("11-error")
        napari.settings.get_settings().appearance.theme = "light"
        camera.take("12-light")
    viewer.close()


def pretrain(folder: Path) -> None:
    """Make the pictures of the Pretrain panel: a short run on a few phantoms, stopped, gone on with, killed."""
    import os
    import signal

    import napari

    from napari_fmseg import phantom_ct, write_volume

    folder.mkdir(parents=True, exist_ok=True)
    viewer = napari.Viewer(show=True)
    viewer.window.resize(*SIZE)
    camera = Photographer(viewer, folder)
    with plain_folder() as temporary:  # its path is in the pictures
        os.environ["FMSEG_HOME"] = str(Path(temporary) / "fmseg")
        scans = Path(temporary) / "scans"
        for i in range(8):
            write_volume(phantom_ct(SEED + i, spacing=(9.0, 7.0, 7.0))[0], scans / f"patient-{i}" / "ct.nii.gz")
        (scans / "patient-3" / "half-copied.nii.gz").write_bytes(b"\x1f\x8bnot a volume")
        _, dock = viewer.window.add_plugin_dock_widget("napari-fmseg", "Pretrain")
        rest(1)
        camera.take("1-start")
        dock.form.volumes.set_path(scans)
        dock.form.unit.setCurrentText("steps")
        dock.form.budget.setValue(300)
        dock.form.more_fields = {
            "kwargs": {"widths": [8, 16, 32, 64, 64], "dropout": 0.0},
            "lr": 3e-3,
            "fusion": {"classes": 1},
        }
        dock.form.patch.setCurrentIndex(0)
        dock.form.more.button.click()
        camera.take("2-chosen")
        dock.form.more.button.click()
        dock.start_button.click()
        wait(lambda: len(dock.plots.dice.values("held-out Dice")[0]) >= 8 and dock.training.state == "training", 600)
        camera.take("3-learning")
        dock.left_out.more.button.click()
        dock.stop_button.click()
        wait(lambda: not dock.training.running)
        rest(1)
        camera.take("4-stopped")
        dock.left_out.more.button.click()
        dock.resume_button.click()
        wait(lambda: dock.training.state == "training")
        os.kill(dock.training.pid, signal.SIGKILL)
        wait(lambda: not dock.training.running)
        camera.take("5-failed")
        dock.resume_button.click()
        wait(lambda: not dock.training.running, 900)
        rest(1)
        camera.take("6-done")
        napari.settings.get_settings().appearance.theme = "light"
        camera.take("7-light")
        dock.close_down()
    viewer.close()


def teach(folder: Path) -> None:
    """Make the pictures of the Teach panel: a project of phantoms, two short trainings, one stopped and killed."""
    import os
    import signal

    import napari

    from napari_fmseg import phantom_ct, write_volume
    from napari_fmseg._napari.layers import labels_layer
    from napari_fmseg._napari.teach.new_project_dialog import NewProject
    from napari_fmseg.core.volume import LabelMap
    from napari_fmseg.training.projects import add_case, init_project

    folder.mkdir(parents=True, exist_ok=True)
    viewer = napari.Viewer(show=True)
    viewer.window.resize(*SIZE)
    camera = Photographer(viewer, folder)

    def patient(number: int) -> tuple[Any, LabelMap]:
        volume, labels = phantom_ct(SEED + number, spacing=(6.0, 3.5, 3.5))
        own = np.select([labels.data == 1, labels.data == 3], [1, 2], 0).astype(np.uint8)
        return volume, LabelMap(own, volume.geometry, {}, {1: "liver", 2: "spleen"})

    with tempfile.TemporaryDirectory() as temporary:
        os.environ["FMSEG_HOME"] = str(Path(temporary) / "fmseg")
        _, dock = viewer.window.add_plugin_dock_widget("napari-fmseg", "Teach")
        rest(1)
        camera.take("1-start")
        place = Path(temporary) / "abdomen"
        dialog = NewProject(dock.window())
        dialog.show()
        dialog.folder.setText("projects/abdomen")
        dialog.names.setText("liver, spleen")
        dialog.kind.setCurrentText("CT")
        camera.take("2-new", dialog)
        dialog.reject()
        dialog.deleteLater()
        project = init_project(place, ("liver", "spleen"), channels=("CT",))
        for i in range(6):
            volume, labels = patient(i)
            project = add_case(project, f"case-{i + 1:03d}", volume, labels if i < 4 else None)
        dock.open_folder(place)
        wait(lambda: dock.project is not None and dock._job is None)
        volume, labels = patient(9)
        scan = Path(temporary) / "scan.nii.gz"
        write_volume(volume, scan)
        viewer.open(str(scan), plugin="napari-fmseg")
        dock.add.new_button.click()
        painted = viewer.layers.selection.active
        truth = labels_layer(labels, "truth", frame=volume.geometry.canonical()[0])[0]
        painted.data[4::5] = truth[4::5]
        painted.refresh()
        planes = np.flatnonzero(painted.data.any((1, 2)))
        middle = planes[len(planes) // 2]
        viewer.dims.set_point(0, float(painted.translate[0] + painted.scale[0] * middle))
        dock.add.part.setCurrentText("Only some slices")
        camera.take("3-painted")
        dock.add.add_button.click()
        wait(lambda: dock._job is None)
        camera.take("4-cases")
        dock.pages.setCurrentIndex(1)
        dock.train.minutes.setValue(MINUTES)
        dock.train.source.setCurrentIndex(dock.train.source.findData("fmsf-phantom-ct"))
        camera.take("5-idle")
        dock.train.start_button.click()
        rest(2)
        camera.take("6-preparing")
        wait(lambda: len(dock.train.dice.values("liver")[0]) >= 6, 900)
        camera.take("7-training")
        wait(lambda: dock.round.keeping.running, 900)
        rest(3)
        camera.take("8-validating")
        wait(lambda: not dock.round.running and dock._job is None, 600)
        camera.take("9-done")
        dock.pages.setCurrentIndex(0)
        dock.cases.predict_button.click()
        wait(lambda: not dock.predicting.running and dock._job is None, 300)
        dock.cases.table.sortItems(3)
        dock.cases.table.sortItems(3)
        dock._on_case(dock.cases.next.text().split("</b> ")[1].split(":")[0])
        wait(lambda: dock._job is None)
        rest(1)
        camera.take("10-predicted")
        dock.pages.setCurrentIndex(1)
        dock.train.start_button.click()
        wait(lambda: dock.round.training.running, 300)
        wait(lambda: len(dock.train.dice.values("liver")[0]) >= 2, 900)
        dock.train.stop_button.click()
        wait(lambda: not dock.round.running and dock._job is None, 300)
        rest(1)
        camera.take("11-stopped")
        dock.train.resume_button.click()
        wait(lambda: dock.round.state == "training", 300)
        os.kill(dock.round.training.pid, signal.SIGKILL)
        wait(lambda: not dock.round.running and dock._job is None)
        camera.take("12-failed")
        dock.error.tell(None)
        dock.pages.setCurrentIndex(2)
        camera.take("13-versions")
        napari.settings.get_settings().appearance.theme = "light"
        camera.take("14-light")
        dock.close_down()
    viewer.close()


def made_up_pet() -> tuple[Any, Any, Any]:
    """Give a CT phantom, a PET that goes with it on a coarser grid, and the labels of the lesions in the PET."""
    from scipy import ndimage

    from napari_fmseg import LabelMap, Volume, phantom_ct
    from napari_fmseg.core.resampling import resample

    ct, organs = phantom_ct(SEED, spacing=(3.0, 1.7, 1.7))
    grid = organs.geometry.resize((ct.data.shape[0] * 3 // 4, ct.data.shape[1] * 17 // 40, ct.data.shape[2] * 17 // 40))
    body = resample(Volume((ct.data > -300).astype(np.float32), ct.geometry), grid).data
    place = resample(organs, grid, order=0).data
    uptake = 0.6 * body + np.choose(place, [0.0, 1.7, 3.5, 1.4, 0.8, 7.0])
    lesions = place == 5
    rng = np.random.default_rng(1)
    inside = np.argwhere(ndimage.binary_erosion((body > 0.5) & (place == 0), iterations=4))
    index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1)
    for centre, radius_mm, hot in zip(
        rng.permutation(inside)[:6], (7, 9, 11, 8, 6, 13), (6, 9, 14, 5, 8, 11), strict=True
    ):
        ball = np.linalg.norm((index - centre) * grid.spacing, axis=-1) < radius_mm
        lesions |= ball
        uptake = np.where(ball, hot, uptake)
    blurred = ndimage.gaussian_filter(uptake, [2.5 / s for s in grid.spacing])
    pet = np.maximum(blurred * rng.normal(1, 0.08, grid.shape), 0).astype(np.float32)
    meta = {"modality": "PT", "units": "SUV", "format": "DICOM"}
    return ct, Volume(pet, grid, meta), LabelMap(lesions.astype(np.uint8), grid, {}, {1: "lesion"})


def pet(folder: Path) -> None:
    """Make the pictures of docs/tutorials/pet.md: a PET alone, over its CT, and the list of lesions."""
    import napari

    from napari_fmseg._napari.layers import image_layers, labels_layer
    from napari_fmseg._napari.opening.layer_data import overlay_on
    from napari_fmseg._napari.results.lesion_table import LesionDialog

    folder.mkdir(parents=True, exist_ok=True)
    viewer = napari.Viewer(show=True)
    viewer.window.resize(*SIZE)
    camera = Photographer(viewer, folder)
    ct, uptake, lesions = made_up_pet()
    napari.settings.get_settings().appearance.theme = "dark"

    def add(volume: Any, name: str) -> None:
        ((data, options, _),) = image_layers(volume, name)
        viewer.add_image(data, **options | overlay_on(viewer, options["metadata"]))

    _, dock = viewer.window.add_plugin_dock_widget("napari-fmseg", "Segment")
    add(ct, "CT")
    add(uptake, "PET")
    data, options, _ = labels_layer(lesions, "lesions")
    viewer.add_labels(data, **options)
    viewer.layers["lesions"].contour = 1
    dock.lesions.click()
    (dialog,) = dock.findChildren(LesionDialog)
    wait(lambda: dialog.found is not None)
    dialog._on_cell(0, 0)
    dock._scroll.ensureWidgetVisible(dock.classes)
    rest(1)
    camera.take("1-over-ct")
    camera.take("2-lesions", dialog)
    viewer.layers["CT"].visible = False
    alone = viewer.layers["PET"]
    alone.colormap, alone.blending, alone.opacity = "gray_r", "translucent_no_depth", 1.0
    napari.settings.get_settings().appearance.theme = "light"
    rest(1)
    camera.take("3-pet")
    dialog.accept()
    dock.close_down()
    viewer.close()


def fit(folder: Path) -> None:
    """Make the picture of docs/how_to/fit.md: a phantom, and a model that is not for it."""
    import napari

    from napari_fmseg import phantom_ct, write_volume

    folder.mkdir(parents=True, exist_ok=True)
    viewer = napari.Viewer(show=True)
    viewer.window.resize(*SIZE)
    camera = Photographer(viewer, folder)
    with tempfile.TemporaryDirectory() as temporary:
        scan = Path(temporary) / "abdomen.nii.gz"
        write_volume(phantom_ct(SEED, spacing=(3.0, 1.7, 1.7))[0], scan)
        _, dock = viewer.window.add_plugin_dock_widget("napari-fmseg", "Segment")
        viewer.open(str(scan), plugin="napari-fmseg")
        wait(lambda: dock.image.case is not None)
        dock.model.choose("headneck-ct")
        rest(1)
        camera.take("1-misfit")
        dock.close_down()
    viewer.close()


def serve(folder: Path) -> None:
    """Make the picture of docs/how_to/serve.md: a server that was started in the Doctor panel, and its client."""
    import urllib.request

    import napari

    from napari_fmseg.core.volume import LabelMap
    from napari_fmseg.datasets.phantom import phantom_ct
    from napari_fmseg.training.projects import LabelOptions, add_nameless, init_project

    folder.mkdir(parents=True, exist_ok=True)
    viewer = napari.Viewer(show=True)
    viewer.window.resize(*SIZE)
    camera = Photographer(viewer, folder)
    with plain_folder() as place:
        project = init_project(place / "my-liver", ("liver",), channels=("CT",))
        for seed in range(2):
            image, truth = phantom_ct(seed, spacing=(12.0, 10.0, 10.0))
            labels = LabelMap((truth.data == 1).astype(np.uint8), truth.geometry, {}, {1: "liver"})
            project, _ = add_nameless(project, image, labels, LabelOptions(unlabelled="nothing"))
        _, dock = viewer.window.add_plugin_dock_widget("napari-fmseg", "Doctor")
        page = dock.serve_page
        dock.pages.setCurrentWidget(page)
        page.project.setEditText(str(project.folder))
        for row in range(page.models.count()):
            if page.models.item(row).text() == "fmsf-phantom-ct":
                page.models.item(row).setCheckState(page.models.item(row).checkState().Checked)
        page.start_button.click()
        wait(lambda: bool(page.address), 300)
        urllib.request.urlopen(f"{page.address}/info/").close()
        wait(lambda: "just now" in page.list.toPlainText())
        camera.take("page", dock)
        page.start_button.click()
        wait(lambda: page.start_button.text() == "Start server")
        dock.close_down()
    viewer.close()


def published(folder: Path) -> None:
    """Make the pictures of docs/how_to/published_models.md: a model to download, and its terms; nothing is fetched."""
    import napari

    from napari_fmseg._napari.choosers.download_dialog import DownloadDialog
    from napari_fmseg._napari.common.dialogs import on_screen

    folder.mkdir(parents=True, exist_ok=True)
    viewer = napari.Viewer(show=True)
    viewer.window.resize(*SIZE)
    camera = Photographer(viewer, folder)
    _, dock = viewer.window.add_plugin_dock_widget("napari-fmseg", "Segment")
    dock.model.choose("meshnet-brain-mr")
    rest(1)
    camera.take("2-offered", dock)
    dock.model.download.click()
    wait(lambda: on_screen(DownloadDialog) is not None)
    dialog = on_screen(DownloadDialog)
    camera.take("1-consent", dialog)
    dialog.reject()
    dock.close_down()
    viewer.close()


MINUTES = 2.0  # of the trainings in the pictures


if __name__ == "__main__":
    np.seterr(all="ignore")
    from correct_pictures import correct
    from nnunet_pictures import nnunet
    from views_pictures import views

    takes = {"tour": tour, "correct": correct, "pretrain": pretrain, "teach": teach, "pet": pet, "fit": fit,
             "nnunet": nnunet, "serve": serve, "published": published, "views": views}  # fmt: skip
    if len(sys.argv) != 2 or sys.argv[1] not in takes:
        sys.exit(f"Say which pictures: {', '.join(takes)}.")
    takes[sys.argv[1]](Path("docs/images") / sys.argv[1])

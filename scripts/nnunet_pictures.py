"""The pictures of docs/how_to/nnunet.md: a model in nnU-Net's files is dropped, run, and trained further.

The model stands for a colleague's: it is trained here on CT phantoms in a few minutes and then written as nnU-Net
stores its results. scripts/screenshots nnunet calls it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from screenshots import SEED, SIZE, Photographer, plain_folder, rest, wait

NET = {"n_classes": 2, "features": [8, 16, 32, 48], "strides": [1, 2, 2, 2]}
LABELS = {"background": 0, "liver": 1}
PATCH, SPACING = [24, 48, 48], [8.0, 6.0, 6.0]
MINUTES = 1.5  # of the first training
FURTHER = 3.0  # of the one in the pictures


def nnunet(folder: Path) -> None:
    """Write all pictures."""
    import napari

    from napari_fmseg import phantom_ct, write_volume

    folder.mkdir(parents=True, exist_ok=True)
    with plain_folder() as place:
        os.environ["FMSEG_HOME"] = str(place / "fmseg")
        results = make_results(place)
        scan = place / "abdomen.nii.gz"
        write_volume(phantom_ct(SEED, spacing=(5.0, 3.0, 3.0))[0], scan)
        viewer = napari.Viewer(show=True)
        viewer.window.resize(*SIZE)
        camera = Photographer(viewer, folder)
        segment_dock, dock = viewer.window.add_plugin_dock_widget("napari-fmseg", "Segment")
        rest(1)
        drop(dock, results)
        wait(lambda: "Imported" in dock.remarks.text())
        camera.take("1-imported")
        dock.more.button.click()
        camera.take("2-options", dock.more)
        dock.more.button.click()
        viewer.open(str(scan), plugin="napari-fmseg")
        image = viewer.layers[0]
        viewer.dims.set_point(0, float(image.translate[0] + image.scale[0] * 30))
        wait(lambda: dock.image.case is not None)
        dock.model.choose("abdomen-3d-fullres-fold-0")
        dock.bar.run_button.click()
        wait(lambda: dock.session.running, 5)
        wait(lambda: not dock.session.running, 300)
        rest(1.5)
        camera.take("3-run")
        viewer.layers.clear()
        teach_dock, teach = viewer.window.add_plugin_dock_widget("napari-fmseg", "Teach", tabify=True)
        teach_dock.raise_()
        make_project(place / "kidneys")
        teach.open_folder(place / "kidneys")
        wait(lambda: teach.project is not None and teach._job is None)
        teach.pages.setCurrentIndex(1)
        teach.train.source.setCurrentIndex(teach.train.source.findData("abdomen-3d-fullres-fold-0"))
        teach.train.minutes.setValue(FURTHER)
        camera.take("4-start-from")
        teach.train.start_button.click()
        wait(lambda: teach.round.running, 60)
        wait(lambda: not teach.round.running and teach._job is None, 900)
        rest(1)
        camera.take("5-learned", teach.pages)
        segment_dock.close()
        dock.close_down()
        teach.close_down()
        viewer.close()


def drop(dock: Any, path: Path) -> None:
    """Drop a folder on a dock."""
    from qtpy.QtCore import QMimeData, QPoint, QPointF, Qt, QUrl
    from qtpy.QtGui import QDragEnterEvent, QDropEvent
    from qtpy.QtWidgets import QApplication

    what = QMimeData()
    what.setUrls([QUrl.fromLocalFile(str(path))])
    rest = Qt.DropAction.CopyAction, what, Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier
    for event in (QDragEnterEvent(QPoint(20, 20), *rest), QDropEvent(QPointF(20, 20), *rest)):
        QApplication.sendEvent(dock, event)


def make_project(folder: Path) -> None:
    """Make a project of 5 phantoms in which the kidneys alone are labelled."""
    from napari_fmseg import LabelMap, phantom_ct
    from napari_fmseg.training.projects import LabelOptions, add_case, init_project

    project = init_project(folder, ("liver", "kidneys"), channels=("CT",))
    for i in range(5):
        volume, truth = phantom_ct(SEED + 1 + i, spacing=(6.0, 3.5, 3.5))
        labels = LabelMap(2 * (truth.data == 2).astype(np.uint8), volume.geometry, {}, {2: "kidneys"})
        project = add_case(project, f"case-{i + 1:03d}", volume, labels, LabelOptions(unlabelled="nothing"))


def make_results(place: Path) -> Path:
    """Train a model and return the folder of its fold, as nnU-Net keeps it."""
    import torch
    from safetensors.torch import load_file

    from napari_fmseg.models.nnunet import import_nnunet
    from napari_fmseg.nets import build
    from napari_fmseg.training import Recipe, StageRecipe, train

    torch.manual_seed(SEED)
    untrained = write_results(place / "untrained", build("plainconvunet", **NET).state_dict())
    (card,) = import_nnunet(untrained, place / "start").cards
    stage = StageRecipe(
        "windows", "plainconvunet", loss="soft_dice_ce_by_class", clip=3.0, lr=3e-3, ema=0.99, keep="last",
        steps=400, steps_per_epoch=100, minutes=MINUTES,
    )  # fmt: skip
    recipe = Recipe(
        "abdomen", (stage,), ("liver",), place / "run", phantom=(10, 1), pipeline="nnunet", device="cpu",
        settings={**card.settings, "orientation": "RAS"}, intensity=card.intensity, modality="CT",
        start_from=str(card.folder / f"{card.name}.toml"),
    )  # fmt: skip
    for event in train(recipe):
        if type(event).__name__ == "EpochDone":
            print(event)
    (weights,) = (place / "run").glob("*.safetensors")
    state = {key.removeprefix("windows."): value for key, value in load_file(weights).items()}
    return write_results(place / "results", state) / "fold_0"


def write_results(folder: Path, state: Mapping[str, Any]) -> Path:
    """Write a results folder of nnU-Net v2 with the weights of a plain U-Net."""
    import torch

    function, orders = "resample_data_or_seg_to_shape", {"data": 3, "seg": 1, "probabilities": 1}
    own: dict[str, Any] = {
        "preprocessor_name": "DefaultPreprocessor", "patch_size": PATCH, "spacing": SPACING,
        "normalization_schemes": ["CTNormalization"], "use_mask_for_norm": [False],
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": {"conv_op": "torch.nn.modules.conv.Conv3d", "nonlin": "torch.nn.LeakyReLU"}},
    }  # fmt: skip
    for what, order in orders.items():
        own[f"resampling_fn_{what}"] = function
        own[f"resampling_fn_{what}_kwargs"] = {
            "is_seg": what == "seg", "order": order, "order_z": 0, "force_separate_z": None}  # fmt: skip
    facts = {"mean": 40.0, "std": 120.0, "percentile_00_5": -200.0, "percentile_99_5": 300.0}
    plans = {
        "dataset_name": "Dataset123_Abdomen", "plans_name": "nnUNetPlans",
        "image_reader_writer": "NibabelIOWithReorient",
        "transpose_forward": [0, 1, 2], "transpose_backward": [0, 1, 2], "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": facts}, "configurations": {"3d_fullres": own},
    }  # fmt: skip
    dataset = {"channel_names": {"0": "CT"}, "labels": LABELS, "numTraining": 10, "file_ending": ".nii.gz"}
    model = folder / "Dataset123_Abdomen" / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    (model / "fold_0").mkdir(parents=True)
    (model / "plans.json").write_text(json.dumps(plans))
    (model / "dataset.json").write_text(json.dumps(dataset))
    content = {"network_weights": dict(state), "trainer_name": "nnUNetTrainer",
               "init_args": {"configuration": "3d_fullres", "fold": 0},
               "inference_allowed_mirroring_axes": None}  # fmt: skip
    torch.save(content, model / "fold_0" / "checkpoint_final.pth")
    return model

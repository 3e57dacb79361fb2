"""Cases by metrics: the figures are right, what was done stays, and one bad case does not stop the others."""

import csv
import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from napari_fmseg.cli.main import main
from napari_fmseg.core.errors import FmsegError
from napari_fmseg.core.events import Warned
from napari_fmseg.core.volume import Geometry, LabelMap, Volume
from napari_fmseg.datasets.labelled_cases import labelled_cases
from napari_fmseg.evaluation.case_table import CaseScores
from napari_fmseg.evaluation.evaluate import Evaluation, evaluate, measure_case
from napari_fmseg.io import write_labels, write_volume
from napari_fmseg.models.card import Intensity, ModelCard, NetSpec
from napari_fmseg.models.weights import Model, save_model
from napari_fmseg.nets import build
from napari_fmseg.pipelines import SegmentOptions
from napari_fmseg.training import Case

FLOAT = SegmentOptions(precision="float32")
GRID = Geometry.from_spacing((6, 7, 8), (2.0, 1.0, 1.0))


class Brighter(nn.Module):
    """Logits of one structure: what is brighter than a half."""

    activation = "softmax"
    calls = 0  # of the class, since the engine runs copies

    def forward(self, x):
        Brighter.calls += 1
        return torch.cat([0.5 - x, x - 0.5], 1)


CARD = ModelCard(
    name="one", title="One", pipeline="single", nets={"net": NetSpec("conv")}, labels={1: "organ"},
    intensity=Intensity("window", 0.0, 1.0), settings={"window": (8, 8, 8)},
)  # fmt: skip


@pytest.fixture
def model():
    return Model(CARD, {"net": Brighter().eval()}, torch.device("cpu"))


@pytest.fixture
def dataset(tmp_path: Path):
    """Two cases whose labels (number 3) are the bright box, shifted by 0 and 1 voxels, and one without a structure."""
    for name, shift in (("anna", 0), ("bert", 1), ("carl", None)):
        image, truth = np.zeros((2, *GRID.shape))
        if shift is not None:
            image[1:5, 1:5, 1:5] = 1
            truth[1:5, 1:5, 1 + shift : 5 + shift] = 3
        write_volume(Volume(image.astype(np.float32), GRID), tmp_path / "images" / f"{name}.nii.gz")
        write_labels(LabelMap(truth.astype(np.uint8), GRID), tmp_path / "labels" / f"{name}.nii.gz")
    return tmp_path


def rows_of(folder):
    with (folder / "evaluation.csv").open() as file:
        return {(row["case"], row["label"]): row for row in csv.DictReader(file)}


def run(model, cases, output, **kwargs):
    *events, whole = evaluate(cases, {3: "organ"}, model, output, FLOAT, **kwargs)
    return [e for e in events if isinstance(e, CaseScores)], whole


def test_table_has_the_figures_of_a_hand_calculation(model, dataset, tmp_path):
    done, whole = run(model, labelled_cases(dataset)[1], tmp_path / "out")
    assert [case.case for case in done] == ["anna", "bert", "carl"]
    rows = rows_of(tmp_path / "out")
    assert float(rows["anna", "organ"]["dice"]) == 1
    assert float(rows["bert", "organ"]["dice"]) == 0.75  # 48 of 64 voxels are shared
    assert float(rows["bert", "organ"]["false_positive_ml"]) == pytest.approx(16 * 2 / 1000)
    assert float(rows["bert", "organ"]["hd95_mm"]) == 1
    assert rows["carl", "organ"]["dice"] == ""  # nothing there and nothing found
    assert (rows["mean", "organ"]["n"], float(rows["mean", "organ"]["dice"])) == ("2", 0.875)
    assert float(rows["sd", "organ"]["dice"]) == pytest.approx(np.std([1, 0.75], ddof=1), rel=1e-5)
    assert float(rows["mean", "all"]["dice"]) == whole.mean() == 0.875
    assert all(float(rows[name, "organ"][cost]) > 0 for name in ("anna", "bert") for cost in ("seconds", "peak_mb"))


def test_cases_that_are_measured_elsewhere_in_any_order_give_the_same_table(model, dataset, tmp_path):
    cases = labelled_cases(dataset)[1]
    _, here = run(model, cases, tmp_path / "here")
    asked = []

    def elsewhere(missing, options):
        asked.append([case.name for case in missing])
        for case in reversed(missing):
            yield from measure_case(case, model, options)

    done, there = run(model.card, cases, tmp_path / "there", measure=elsewhere)
    assert [case.case for case in done] == ["carl", "bert", "anna"]
    assert [case.case for case in there.cases] == ["anna", "bert", "carl"]
    assert [case.scores for case in there.cases[:2]] == [case.scores for case in here.cases[:2]]
    assert rows_of(tmp_path / "there").keys() == rows_of(tmp_path / "here").keys()
    run(model.card, cases, tmp_path / "there", measure=elsewhere)
    assert asked == [["anna", "bert", "carl"], []]


def test_finished_cases_are_not_run_again(model, dataset, tmp_path):
    cases = labelled_cases(dataset)[1]
    work = evaluate(cases, {3: "organ"}, model, tmp_path / "out", FLOAT)
    next(event for event in work if isinstance(event, CaseScores))
    work.close()  # cancelled after the first
    assert next(iter(rows_of(tmp_path / "out"))) == ("anna", "organ")
    calls = Brighter.calls
    _, first = run(model, cases, tmp_path / "out")
    assert Brighter.calls == calls + 2  # the other two cases, one window each
    _, again = run(model, cases, tmp_path / "out")
    assert Brighter.calls == calls + 2
    assert repr(again) == repr(first)  # nan is not equal to nan


def test_changed_case_is_run_again(model, dataset, tmp_path):
    cases = labelled_cases(dataset)[1]
    run(model, cases, tmp_path / "out")
    truth = np.zeros(GRID.shape, np.uint8)
    truth[1:5, 1:5, 1:5] = 3
    write_labels(LabelMap(truth, GRID), dataset / "labels" / "bert.nii.gz")
    run(model, cases, tmp_path / "out")
    assert float(rows_of(tmp_path / "out")["bert", "organ"]["dice"]) == 1


def test_bad_case_is_told_and_the_others_go_on(model, dataset, tmp_path):
    (dataset / "images" / "anna.nii.gz").write_bytes(b"")
    done, whole = run(model, labelled_cases(dataset)[1], tmp_path / "out", keep_labels=True)
    assert "empty" in done[0].problem
    assert whole.mean() == 0.75
    assert sorted(p.name for p in (tmp_path / "out" / "labels").iterdir()) == ["bert.nii.gz", "carl.nii.gz"]


def test_output_of_another_model_is_refused(model, dataset, tmp_path):
    cases = labelled_cases(dataset)[1]
    run(model, cases, tmp_path / "out")
    other = Model(dataclasses.replace(CARD, name="two"), model.nets, model.device)
    with pytest.raises(FmsegError, match="evaluation of another model"):
        run(other, cases, tmp_path / "out")
    with pytest.raises(FmsegError, match="share no class"):
        next(evaluate(cases, {3: "spleen"}, model, tmp_path / "other"))


def test_output_of_another_data_set_is_refused(model, dataset, tmp_path):
    cases = labelled_cases(dataset)[1]
    run(model, cases[:2], tmp_path / "out")
    before = (tmp_path / "out" / "evaluation.json").read_bytes()
    other = tmp_path / "other"
    for case in cases:  # the same names, other images
        write_volume(Volume(np.ones(GRID.shape, np.float32), GRID), other / "images" / case.images[0].name)
        write_labels(LabelMap(np.full(GRID.shape, 3, np.uint8), GRID), other / "labels" / case.labels.name)
    for strangers in (labelled_cases(other)[1], cases[2:]):  # and another part of the same data set
        with pytest.raises(FmsegError, match="another data set or part"):
            run(model, strangers, tmp_path / "out")
    assert (tmp_path / "out" / "evaluation.json").read_bytes() == before
    with pytest.raises(FmsegError, match=r"1 name\(s\) stand for several cases, such as anna"):
        run(model, [cases[0], cases[0]], tmp_path / "twice")


def test_a_data_set_that_was_moved_or_has_changed_goes_on(model, dataset, tmp_path):
    run(model, labelled_cases(dataset)[1], tmp_path / "out")
    for part in ("images", "labels"):
        (dataset / "moved").mkdir(exist_ok=True)
        (dataset / part).rename(dataset / "moved" / part)
    calls = Brighter.calls
    done, _ = run(model, labelled_cases(dataset / "moved")[1][:2], tmp_path / "out")  # one case was taken out
    assert (Brighter.calls, [case.case for case in done]) == (calls, ["anna", "bert"])
    assert [case["case"] for case in json.loads((tmp_path / "out" / "evaluation.json").read_text())["cases"]] == [
        "anna", "bert",
    ]  # fmt: skip


def test_what_was_repaired_in_the_labels_is_said(model, dataset, tmp_path):
    truth = np.full(GRID.shape, np.nan, np.float32)
    truth[1:5, 1:5, 1:5] = 3
    write_volume(Volume(truth, GRID), dataset / "labels" / "anna.nii.gz")
    cases = labelled_cases(dataset)[1][:1]
    *events, whole = evaluate(cases, {3: "organ"}, model, tmp_path / "out", FLOAT)
    assert [
        event.text for event in events if isinstance(event, Warned) and "anna" in event.text and "NaN" in event.text
    ]
    assert whole.mean() == 1


def test_missed_structure_has_no_distance_in_the_mean():
    nothing = {"dice": 0.0, "hd95_mm": math.inf}
    cases = (CaseScores("a", {"organ": {"dice": 1.0, "hd95_mm": 2.0}}), CaseScores("b", {"organ": nothing}))
    whole = Evaluation("one", cases=cases)
    assert (whole.mean("hd95_mm"), whole.mean("dice")) == (2.0, 0.5)


def test_unlabelled_voxels_and_classes_do_not_count(model, dataset, tmp_path):
    truth = np.zeros(GRID.shape, np.uint8)
    truth[1:5, 1:5, 1:3], truth[:, :, 3:] = 3, 9
    write_labels(LabelMap(truth, GRID), dataset / "labels" / "anna.nii.gz")
    case = Case("anna", (dataset / "images" / "anna.nii.gz",), dataset / "labels" / "anna.nii.gz")
    names = {3: "organ", 4: "other", 9: "ignore"}
    *_, whole = evaluate([case], names, model, tmp_path / "out", FLOAT)
    assert whole.mean() == 1
    *_, whole = evaluate([dataclasses.replace(case, classes=("other",))], names, model, tmp_path / "other", FLOAT)
    assert not whole.cases[0].scores


@pytest.mark.parametrize(("folders", "part", "expected"), [
    (("imagesVal", "labelsVal"), "validation", ["anna", "bert", "carl"]),
    (("imagesTs", "labelsTs"), "test", ["anna", "bert", "carl"]),
    (("imagesTr", "labelsTr"), "all", ["anna", "bert", "carl"]),
])  # fmt: skip
def test_published_folders_are_found(folders, part, expected, dataset):
    for old, new in zip(("images", "labels"), folders, strict=True):
        (dataset / old).rename(dataset / new)
    names, cases = labelled_cases(dataset, part)
    assert [case.name for case in cases] == expected
    assert names == {}
    with pytest.raises(FmsegError, match="no labelled case"):
        labelled_cases(dataset, "training" if part != "all" else "test")


def test_list_of_a_dataset_is_obeyed(dataset):
    for old, new in (("images", "imagesTr"), ("labels", "labelsTr")):
        (dataset / old).rename(dataset / new)
    for path in (dataset / "imagesTr").iterdir():
        path.rename(path.with_name(path.name.replace(".nii", "_0000.nii")))
    held = {"image": "imagesTr/bert_0000.nii.gz", "label": "labelsTr/bert.nii.gz", "case": "bert"}
    (dataset / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "organ": 3}, "validation": [held]}))
    names, cases = labelled_cases(dataset)
    assert ([case.name for case in cases], names) == (["bert"], {3: "organ"})
    assert [case.name for case in labelled_cases(dataset, "training")[1]] == ["anna", "carl"]
    assert len(labelled_cases(dataset, "all")[1]) == 3
    assert len(labelled_cases(dataset / "imagesTr", labels=dataset / "labelsTr")[1]) == 3


def test_command_prints_the_table_and_keeps_it(dataset, tmp_path, capsys):
    torch.manual_seed(0)
    spec = NetSpec("unet3d", {"width": 2})
    card = dataclasses.replace(CARD, nets={"net": spec}, labels={3: "organ"}, settings={"window": (16, 16, 16)})
    card = dataclasses.replace(card, nets={"net": NetSpec("unet3d", {"width": 2, "n_classes": 4})})
    save_model(card, {"net": build("unet3d", width=2, n_classes=4)}, tmp_path / "model")
    words = ["evaluate", str(dataset), "--model", str(tmp_path / "model" / "one.toml"), "--output", str(tmp_path / "o")]
    assert main([*words, "--device", "cpu", "--overlap", "0.25", "--window-batch", "2"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0].split()[:3] == ["CASE", "LABEL", "DICE"]
    assert "mean" in out
    assert json.loads((tmp_path / "o" / "evaluation.json").read_text())["setup"]["overlap"] == 0.25
    assert main([*words, "--device", "cpu"]) == 1  # other options, the same folder
    # An image without labels is named; another folder does not go into this output.
    write_volume(Volume(np.zeros(GRID.shape, np.float32), GRID), dataset / "images" / "dora.nii.gz")
    words[-1] = str(tmp_path / "p")
    capsys.readouterr()
    assert main([*words, "--device", "cpu", "--json"]) == 0
    told = capsys.readouterr()
    assert "1 images have no labels and are not measured: dora" in told.err
    assert json.loads(told.out)["unlabelled"] == ["dora"]

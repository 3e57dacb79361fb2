"""Coarse-to-fine training: what each network is shown, what is kept on disk, and which cases come again."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from safetensors import safe_open
from safetensors.torch import save_file

from napari_fmseg.core.errors import FmsegError, InvalidRecipe
from napari_fmseg.core.events import EpochDone, Saved, StepDone, drain
from napari_fmseg.core.resampling_torch import to_canonical
from napari_fmseg.core.volume import Geometry, LabelMap, Volume
from napari_fmseg.datasets.nnunet_raw import cases_of
from napari_fmseg.evaluation.metrics import dice_per_label
from napari_fmseg.io import read_labels, read_volume, write_labels, write_volume
from napari_fmseg.models.card import Intensity, read_card
from napari_fmseg.models.measures import measure_volume, summarise
from napari_fmseg.models.weights import load_model
from napari_fmseg.nets import build
from napari_fmseg.nets.traits import probabilities
from napari_fmseg.pipelines import segment
from napari_fmseg.pipelines.coarse_fine import box_around, network_input
from napari_fmseg.pipelines.slab_reader import SlabReader
from napari_fmseg.training.data.case_cache import Prepared, prepare
from napari_fmseg.training.data.hard_mining import HardExampleMiner, dice_of_samples
from napari_fmseg.training.data.sampling import CaseSampler
from napari_fmseg.training.forgetting import Teacher
from napari_fmseg.training.loop import _Run, train
from napari_fmseg.training.losses.partial_labels import partial_structures
from napari_fmseg.training.losses.structures import STRUCTURE_LOSSES
from napari_fmseg.training.recipe import LOSSES, Augment, Recipe, StageRecipe
from napari_fmseg.training.recipe_file import load_recipe
from napari_fmseg.training.tasks.base import make_structure_loss
from napari_fmseg.training.tasks.coarse_fine import CoarseFineTask, brighten_structures, fine_window

STILL = Augment(shift=0, zoom=0, rotate_p=0, contrast=0, brightness=0, gamma=0, noise=0, jitter_mm=0)
NET: dict[str, Any] = {"channels": [4, 8, 8, 8, 8], "dropout": 0.1}
COARSE = StageRecipe("coarse", "baseunet", steps=4, steps_per_epoch=2, loss="dice+bce", kwargs={**NET, "encoder": 2})
FINE = StageRecipe(
    "fine", "efficientsegnet", steps=4, steps_per_epoch=2, loss="dice+bce", kwargs={**NET, "context": "none"}
)
SETTINGS = {"coarse_size": [32, 24, 24], "fine_size": [32, 32, 24], "margin_mm": 6.0}
FINER: dict[str, Any] = {"coarse_size": [24, 26, 28], "fine_size": [32, 32, 24], "margin_mm": 6.0}  # cases fit whole


def write_case(folder: Path, name: str, rng: np.random.Generator) -> None:
    data = rng.normal(0, 8, (26, 30, 34))
    labels = np.zeros(data.shape, np.uint8)
    z, y, x = rng.integers(5, 12, 3)
    labels[z : z + 9, y : y + 9, x : x + 9] = 1
    labels[z : z + 9, y : y + 9, x + 12 : x + 17] = 2
    data[labels == 1] += 100
    data[labels == 2] -= 100
    geometry = Geometry.from_spacing(data.shape, (2, 1.5, 1.5))
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    write_volume(Volume(data.astype(np.float32), geometry), folder / "imagesTr" / f"{name}_0000.nii.gz")
    write_labels(LabelMap(labels, geometry), folder / "labelsTr" / f"{name}.nii.gz")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FMSEG_HOME", str(tmp_path / "home"))
    rng = np.random.default_rng(5)
    for i in range(5):
        write_case(tmp_path / "data", f"c{i}", rng)
    facts = {"labels": {"background": 0, "cube": 1, "slab": 2}}
    (tmp_path / "data" / "dataset.json").write_text(json.dumps(facts))
    return tmp_path


def recipe(home: Path, *stages: StageRecipe, **changes: Any) -> Recipe:
    plain: dict[str, Any] = {
        "name": "two",
        "labels": ("cube", "slab"),
        "dataset": home / "data",
        "out": home / "out",
        "device": "cpu",
        "pipeline": "coarse_fine",
        "settings": SETTINGS,
        "intensity": Intensity("window", -150, 150),
        "stages": stages or (COARSE, FINE),
    }
    return Recipe(**{**plain, **changes})


def ready(plan: Recipe, folder: Path) -> list[Prepared]:
    assert plan.dataset is not None
    names, training, _ = cases_of(plan.dataset)
    return drain_of(prepare([(case, names) for case in training], plan, folder, torch.device("cpu")))


def drain_of(work: Any) -> Any:
    while True:
        try:
            next(work)
        except StopIteration as done:
            return done.value


def test_both_stages_train_in_order_and_the_card_segments(home: Path) -> None:
    events = list(train(recipe(home)))
    assert [e.stage for e in events if isinstance(e, EpochDone)] == ["coarse", "coarse", "fine", "fine"]
    assert isinstance(events[-1], Saved)
    model = load_model(events[-1].path, device="cpu")
    assert list(model.card.nets) == ["coarse", "fine"]
    assert set(model.card.scores) == {"coarse", "fine", "labels"}
    volume = read_volume(home / "data" / "imagesTr" / "c4_0000.nii.gz")  # held out: every fifth case by name
    truth = read_labels(home / "data" / "labelsTr" / "c4.nii.gz").data
    found = drain(segment(volume, model))
    assert found.geometry == volume.geometry
    assert model.card.scores["labels"] == pytest.approx(
        dict(zip(("cube", "slab"), dice_per_label(found.data, truth, 3), strict=True)), abs=2e-3
    )


def weights_of(folder: Path) -> str:
    return hashlib.sha256((folder / "two.safetensors").read_bytes()).hexdigest()


def test_a_run_that_was_stopped_goes_on_and_ends_with_the_same_weights(home: Path) -> None:
    last = ("fine", 3)
    plan = recipe(home, hard_case_weight=2, validate_cases=1)
    list(train(dataclasses.replace(plan, out=home / "whole", prepared=home / "kept")))
    stopped = dataclasses.replace(plan, out=home / "stopped", prepared=home / "kept")
    events = train(stopped)
    while True:
        event = next(events)
        if isinstance(event, StepDone) and (event.stage, event.step) == last:  # in the middle of the second epoch
            break
    events.close()
    torch.rand(3)  # whatever else draws numbers in between
    steps = [(e.stage, e.step) for e in train(stopped) if isinstance(e, StepDone)]
    assert steps[0] == last
    assert weights_of(home / "stopped") == weights_of(home / "whole")


# --- what is kept on disk -----------------------------------------------------------------------------------------


def test_cases_are_made_ready_once_and_are_what_the_files_say(home: Path) -> None:
    plan = recipe(home, settings=FINER)
    first = ready(plan, home / "kept")
    (kept,) = (home / "kept").glob("*")
    stamp = kept.stat().st_mtime_ns
    again = ready(plan, home / "kept")
    assert kept.stat().st_mtime_ns == stamp
    for case, other, number in zip(first, again, range(4), strict=True):
        data, _ = to_canonical(read_volume(home / "data" / "imagesTr" / f"c{number}_0000.nii.gz"))
        marks, geometry = to_canonical(read_labels(home / "data" / "labelsTr" / f"c{number}.nii.gz"))
        torch.testing.assert_close(case.whole, torch.from_numpy(data.copy()).half())  # small enough to be kept whole
        assert torch.equal(case.whole_labels, torch.from_numpy(marks[0].copy()))
        assert torch.equal(case.image, other.image)
        # The labels begin and end at the edges, and none is cut off.
        at = np.argwhere(case.labels.numpy() > 0)
        assert np.allclose(at.min(0), [a for a, _ in case.edges])
        assert np.allclose(at.max(0) + 1, [b for _, b in case.edges])
        assert (case.labels > 0).sum() == (marks > 0).sum()
        assert case.spacing == pytest.approx(geometry.spacing)


def test_what_was_measured_of_a_case_is_kept_with_it_and_reaches_the_card(home: Path) -> None:
    volumes = [read_volume(home / "data" / "imagesTr" / f"c{i}_0000.nii.gz") for i in range(4)]
    measured = [measure_volume(volume) for volume in volumes]
    for _ in range(2):  # made, and found again
        assert [case.source for case in ready(recipe(home), home / "kept")] == measured

    (kept,) = (home / "kept").glob("*")  # as an earlier version kept them
    with safe_open(kept, framework="pt") as file:
        facts = {key: json.loads(text) for key, text in file.metadata().items()}
        tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118 - no mapping
    less = {key: json.dumps({n: v for n, v in fact.items() if n != "measures"}) for key, fact in facts.items()}
    kept.unlink()
    save_file(tensors, kept, metadata=less)
    assert [case.source for case in ready(recipe(home), home / "kept")] == [None] * 4
    *_, last = train(recipe(home, prepared=home / "kept"))
    assert read_card(last.path).training_data == summarise(measured)


def test_large_volumes_are_kept_smaller_and_at_the_right_place(home: Path) -> None:
    plan = recipe(home, settings={"coarse_size": [8, 8, 8], "fine_size": [8, 8, 8], "margin_mm": 6.0})
    large = recipe(home)
    for case, whole in zip(ready(plan, home / "small"), ready(large, home / "large"), strict=True):
        assert tuple(case.whole.shape) == (1, 10, 10, 10)
        for small, full, labels in ((case, whole, case.labels), (case, whole, case.labels)):
            assert max(small.labels.shape) < max(full.labels.shape)
            mm = [[e * s for e in edge] for edge, s in zip(small.edges, small.spacing, strict=True)]
            expected = [[e * s for e in edge] for edge, s in zip(full.edges, full.spacing, strict=True)]
            np.testing.assert_allclose(mm, expected, atol=1e-4)
            bright = small.image[0].float() > 60
            assert ((labels == 1) & bright).sum() / ((labels == 1) | bright).sum() > 0.5


def test_several_processes_make_the_same(home: Path) -> None:
    one = ready(recipe(home, processes=1), home / "one")
    two = ready(recipe(home, processes=2), home / "two")
    assert len(list((home / "two").glob("*.safetensors"))) == 2
    for a, b in zip(one, two, strict=True):
        assert a.edges == b.edges
        for part in ("image", "labels", "whole", "whole_labels"):
            assert torch.equal(getattr(a, part), getattr(b, part))


def test_a_process_that_cannot_read_a_case_says_so(home: Path) -> None:
    (home / "data" / "labelsTr" / "c1.nii.gz").write_bytes(b"no labels")
    with pytest.raises(FmsegError, match="c1"):
        ready(recipe(home, processes=2), home / "kept")


def test_what_a_killed_run_left_half_written_is_made_again(home: Path) -> None:
    first = ready(recipe(home), home / "kept")[0]
    (kept,) = (home / "kept").glob("*")
    part = kept.read_bytes()[:1000]
    kept.unlink()  # `first` still looks at it: the tensors are mapped
    kept.write_bytes(part)
    assert torch.equal(ready(recipe(home), home / "kept")[0].image, first.image)


# --- what the networks are shown ----------------------------------------------------------------------------------


def made_up(shape: tuple[int, int, int] = (40, 50, 60), spacing: tuple[float, float, float] = (3, 2, 1)) -> Prepared:
    labels = torch.zeros(shape, dtype=torch.uint8)
    labels[15:22, 20:31, 25:45] = 1
    edges = ((15.0, 22.0), (20.0, 31.0), (25.0, 45.0))
    return Prepared("made up", torch.zeros(1, *shape), labels, (), spacing, edges, torch.zeros(1, *shape), labels)


@pytest.mark.parametrize("jitter_mm", [0.0, 12.0, 40.0, 500.0])
def test_jittered_faces_stay_in_the_volume_and_within_the_bounds(jitter_mm: float) -> None:
    case, rng = made_up(), np.random.default_rng(0)
    fixed, faces = 0, []
    for _ in range(300):
        spans = fine_window(case, 9.0, jitter_mm, rng)
        wide = [(a - 9.0 / s, b + 9.0 / s) for (a, b), s in zip(case.edges, case.spacing, strict=True)]
        fixed += spans == [(max(0, a), min(n, b)) for (a, b), n in zip(wide, case.labels.shape, strict=True)]
        for (a, b), (first, last), n, s in zip(spans, case.edges, case.labels.shape, case.spacing, strict=True):
            assert 0 <= a < b <= n
            assert a >= first - max(9.0, jitter_mm) / s - 1e-6
            assert b <= last + max(9.0, jitter_mm) / s + 1e-6
            assert a <= first + min(jitter_mm / 3 / s, (last - first) / 4) + 1e-6
            assert b >= last - min(jitter_mm / 3 / s, (last - first) / 4) - 1e-6
            faces += [(first - a) * s, (b - last) * s]
    assert 110 < fixed < 190
    if jitter_mm == 12.0:
        assert min(faces) < -3
        assert 11 < max(faces) <= 12 + 1e-6


def test_brightness_changes_labels_only_and_each_by_one_number() -> None:
    image = torch.randn(1, 6, 7, 8)
    target = torch.zeros(4, 6, 7, 8)
    target[0] = 1
    for c, z in ((1, slice(0, 2)), (2, slice(2, 4))):
        target[0, z], target[c, z] = 0, 1
    rng, changed = np.random.default_rng(1), []
    for _ in range(60):
        added = brighten_structures(image, target, 200.0, rng) - image
        assert torch.equal(added[0, 4:], torch.zeros_like(added[0, 4:]))
        for z in (slice(0, 2), slice(2, 4)):
            assert float(added[0, z].max() - added[0, z].min()) < 1e-4
            assert float(added[0, z].abs().max()) <= 200
            changed.append(float(added[0, z].abs().max()) > 1e-4)
    assert 0.35 < np.mean(changed) < 0.65


@pytest.mark.parametrize("stage", ["coarse", "fine"])
def test_without_variation_a_network_sees_what_the_pipeline_shows_it(home: Path, stage: str) -> None:
    for kind in ("window", "window_zscore"):
        plan = recipe(home, augment=STILL, intensity=Intensity(kind, -150, 150), settings=FINER)
        case = ready(plan, home / "kept")[0]
        task = CoarseFineTask(COARSE if stage == "coarse" else FINE, plan, [case], {})
        rng = np.random.default_rng(1)  # its first draw asks for the box with the margin
        (x,), target = task.sample(0, rng, torch.Generator())
        volume = read_volume(home / "data" / "imagesTr" / "c0_0000.nii.gz")
        truth = read_labels(home / "data" / "labelsTr" / "c0.nii.gz")
        data, geometry = to_canonical(volume)
        size = FINER[f"{stage}_size"]
        box = tuple(slice(0, n) for n in geometry.shape)
        if stage == "fine":
            box = box_around(to_canonical(truth)[0][0], geometry, 6.0)
        expected = network_input(SlabReader(data, torch.device("cpu")).read(box, size), plan.intensity)
        torch.testing.assert_close(x, expected, atol=0.02 if kind == "window_zscore" else 2e-3, rtol=0)
        torch.testing.assert_close(target.sum(0), torch.ones(tuple(size)))
        bright = x[0] > (x[0].max() + x[0].min()) / 2 + 0.2 * (x[0].max() - x[0].min())
        assert ((target[1] > 0.5) & bright).sum() / ((target[1] > 0.5) | bright).sum() > 0.8


# --- losses of structures that may overlap ------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_trains_either_kind_of_network(home: Path, loss: str, activation: str) -> None:
    plan = recipe(home, augment=STILL)
    kwargs = {"channels": [4, 4, 4, 4, 4], "encoder": 2, "dropout": 0.0, "activation": activation}
    stage = dataclasses.replace(COARSE, loss=loss, kwargs=kwargs)
    task = CoarseFineTask(stage, plan, ready(plan, home / "kept")[:1], {})
    torch.manual_seed(1)
    net = build("baseunet", in_channels=1, n_classes=3, **kwargs)
    optimiser = torch.optim.Adam(net.parameters(), 1e-3)
    (x,), target = task.sample(0, np.random.default_rng(0), torch.Generator())
    values = []
    for _ in range(3):
        optimiser.zero_grad()
        value = task.loss(net, [x[None]], target[None])
        value.backward()
        optimiser.step()
        values.append(float(value.detach()))
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    assert values[2] < values[0]


def drawn(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    p = torch.rand(2, 3, 6, 6, 6, generator=generator)
    labels = torch.randint(0, 4, (2, 6, 6, 6), generator=generator)
    return p, torch.nn.functional.one_hot(labels, 4).movedim(-1, 1).float()


@pytest.mark.parametrize("loss", [name for name in LOSSES if name != "dice+boundary"])
def test_what_overlapping_structures_do_where_nobody_labelled_is_not_asked(loss: str) -> None:
    p, target = drawn()
    target[:, :, 2:] = 0
    value = partial_structures(make_structure_loss(loss), p.requires_grad_(), target)
    value.backward()
    assert p.grad is not None
    assert (p.grad[:, :, 2:] == 0).all()
    cut = partial_structures(make_structure_loss(loss), p.detach()[:, :, :2], target[:, :, :2], sparse=False)
    torch.testing.assert_close(value.detach(), cut)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_structure_that_was_never_labelled_is_not_asked_about(loss: str) -> None:
    p, target = drawn()
    criterion = make_structure_loss(loss)
    value = partial_structures(criterion, p.requires_grad_(), target, sparse=False, missing=[(2,), (2,)])
    value.backward()
    assert p.grad is not None
    assert (p.grad[:, 1] == 0).all()
    torch.testing.assert_close(value.detach(), criterion(p.detach()[:, [0, 2]], target[:, [1, 3]]))


def test_dice_of_a_sigmoid_is_the_published_one() -> None:
    p, target = drawn()
    expected = 1 - (2 * (p * target[:, 1:]).sum((2, 3, 4))) / ((p**2).sum((2, 3, 4)) + target[:, 1:].sum((2, 3, 4)))
    torch.testing.assert_close(make_structure_loss("dice")(p, target[:, 1:]), expected.mean())
    assert set(STRUCTURE_LOSSES) <= set(LOSSES)


def test_depths_are_not_measured_where_voxels_are_unlabelled(home: Path) -> None:
    path = home / "data" / "labelsTr" / "c0.nii.gz"
    labels = read_labels(path)
    labels.data[:4] = 9
    write_labels(labels, path)
    stage = dataclasses.replace(COARSE, loss="dice+boundary")
    with pytest.raises(InvalidRecipe, match=r"dice\+boundary.*dice\+topk"):
        list(train(recipe(home, stage, ignore=9)))


def test_a_second_head_is_refused(home: Path) -> None:
    with pytest.raises(InvalidRecipe, match="auxiliary"):
        list(train(recipe(home, dataclasses.replace(COARSE, kwargs={**COARSE.kwargs, "auxiliary": 2}))))


def test_the_single_pipeline_trains_a_sigmoid_too(home: Path) -> None:
    stage = StageRecipe("net", "baseunet", steps=2, steps_per_epoch=2, loss="dice+focal", kwargs=COARSE.kwargs)
    plan = recipe(home, stage, pipeline="single", settings={"window": [24, 24, 24]})
    assert isinstance(list(train(plan))[-1], Saved)


# --- hard cases and folds -----------------------------------------------------------------------------------------


def test_the_worst_fifth_is_drawn_more_often_and_alike_each_time(home: Path) -> None:
    plan = recipe(home, hard_case_weight=3)
    names, fabric = [f"c{i}" for i in range(10)], Fabric(accelerator="cpu", devices=1)
    watching = HardExampleMiner(plan, names)
    assert watching.hard() == []
    target = torch.zeros(1, 3, 4, 4, 4)
    target[:, 0], target[:, 0, :2], target[:, 1, :2] = 1, 0, 1
    for i in range(9):  # the last one is never seen
        p = torch.zeros(1, 2, 4, 4, 4)
        p[:, 0, :2] = 1 if i not in (4, 7) else 0.1
        watching.saw([i], p, target, ())
    seen = watching.end_epoch(fabric)
    assert watching.hard() == [4, 7]
    assert math.isnan(seen[9])
    assert HardExampleMiner(plan, names, seen).hard() == [4, 7]  # a run that goes on knows it
    drawing = CaseSampler(plan, (), [False] * 10)
    picks = [drawing.picks(64, np.random.default_rng(5), watching.hard()) for _ in range(2)]
    assert picks[0] == picks[1]
    counts = np.bincount([i for i, _ in picks[0]], minlength=10)
    assert counts.tolist() == [4, 4, 4, 4, 16, 4, 4, 16, 4, 4]


def test_hard_cases_may_be_named(home: Path) -> None:
    assert HardExampleMiner(recipe(home, hard_case_weight=1, hard_cases=("c2",)), ["c1", "c2"]).hard() == [1]
    with pytest.raises(InvalidRecipe, match="c9"):
        HardExampleMiner(recipe(home, hard_case_weight=1, hard_cases=("c9",)), ["c1", "c2"])
    with pytest.raises(InvalidRecipe, match="hard_case_weight"):
        recipe(home, hard_cases=("c1",))


def test_dice_of_samples_leaves_out_what_was_not_labelled() -> None:
    target = torch.zeros(1, 3, 2, 2, 2)
    target[:, 1, 0], target[:, 0, 1, 0] = 1, 1  # four voxels of nobody
    p = torch.zeros(1, 2, 2, 2, 2)
    p[:, 0, 0], p[:, 0, 1, 1] = 1, 1
    assert dice_of_samples(p, target) == [1.0]
    with_background = torch.cat([1 - p.sum(1, keepdim=True), p], 1)
    assert dice_of_samples(with_background, target) == [1.0]
    assert math.isnan(dice_of_samples(p, target, [(1,)])[0])


def test_a_recipe_may_ask_for_a_fold(home: Path) -> None:
    held = []
    for fold in (1, 2):
        plan = recipe(home, COARSE, folds=2, fold=fold, out=home / f"fold{fold}")
        run = _Run(plan)
        list(run.prepare())
        assert len(run.samples) + len(run.held) == 5
        held += [h.volume.data.sum() for h in run.held]
    assert len(set(held)) == 5
    with pytest.raises(InvalidRecipe, match="fold counts from 1"):
        recipe(home, folds=5)


def test_recipes_of_ours_can_be_read() -> None:
    folder = Path(__file__).parents[3] / "resources" / "recipes"
    for name in ("efficient-phantom-ct", "published/efficient-flare21"):
        plan = load_recipe(folder / f"{name}.toml")
        assert {stage.stage for stage in plan.stages} == {"coarse", "fine"}
        for stage in plan.stages:
            build(stage.network, in_channels=1, n_classes=len(plan.labels) + 1, **stage.kwargs)


@pytest.mark.parametrize(("before", "now"), [("sigmoid", "sigmoid"), ("softmax", "sigmoid"), ("sigmoid", "softmax")])
def test_a_network_of_before_is_asked_whatever_its_heads_are(before: str, now: str) -> None:
    kwargs = {"in_channels": 1, "channels": [4, 4, 4, 4, 4], "encoder": 2}
    torch.manual_seed(0)
    old = build("baseunet", n_classes=3, activation=before, **kwargs)
    new = build("baseunet", n_classes=4, activation=now, **kwargs).eval()
    teacher = Teacher(old, {1: "cube", 2: "slab"}, ("slab", "ball", "cube"))
    x = torch.rand(1, 1, 32, 24, 24)
    found = probabilities(new, new(x))
    told = probabilities(old, old(x)).detach()
    both = told[:, -2:]  # cube, slab
    mine = found[:, -3:][:, [2, 0]]
    if before == now == "sigmoid":
        torch.testing.assert_close(teacher.loss(found, [x]), make_structure_loss("dice_ce")(mine, both))
    right, wrong = found.detach().clone(), found.detach().clone()
    for values, answer in ((right, both), (wrong, 1 - both)):
        values[:, -3:][:, [2, 0]] = answer
    assert teacher.loss(right, [x]) < teacher.loss(wrong, [x])

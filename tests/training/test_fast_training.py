"""Training in minutes: the moving average, unlabelled volumes, planned time, and resuming with all of them."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from napari_fmseg.core.errors import InvalidRecipe
from napari_fmseg.core.events import LEARNED_FROM, EpochDone, Saved, StepDone, Warned
from napari_fmseg.core.volume import Geometry, LabelMap, Volume
from napari_fmseg.datasets.case import Case
from napari_fmseg.datasets.nnunet_raw import find_unlabelled
from napari_fmseg.io import read_volume, write_labels, write_volume
from napari_fmseg.models.registry import find_card
from napari_fmseg.models.weights import load_model
from napari_fmseg.nets import build
from napari_fmseg.training import Augment, Recipe, Replay, StageRecipe, distributed, stage_trainer, train
from napari_fmseg.training.data.hard_mining import soft_dice
from napari_fmseg.training.losses.soft_dice_ce import SoftDiceCELoss
from napari_fmseg.training.optimisation import WeightAverage, make_optimiser, rate_of

NET = {"widths": (4, 8), "strides": ((2, 2, 2), (2, 2, 2))}
STAGE = StageRecipe(
    "consensus",
    "fastunet",
    loss="soft_dice_ce_by_class",
    steps=8,
    steps_per_epoch=4,
    lr=5e-3,
    ema=0.9,
    keep="last",
    kwargs=NET,
)


def write_case(folder: Path, name: str, rng: np.random.Generator) -> dict[str, str]:
    labels = np.zeros((20, 24, 24), np.uint8)
    z, y, x = rng.integers(3, 9, 3)
    labels[z : z + 9, y : y + 9, x : x + 9] = 1
    data = (rng.normal(0, 8, labels.shape) + 100 * labels).astype(np.float32)
    geometry = Geometry.from_spacing(labels.shape, (2, 1.5, 1.5))
    write_volume(Volume(data, geometry), folder / f"{name}.nii.gz")
    write_labels(LabelMap(labels, geometry), folder / f"{name}-labels.nii.gz")
    return {"case": name, "image": f"{name}.nii.gz", "label": f"{name}-labels.nii.gz"}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FMSEG_HOME", str(tmp_path / "home"))
    rng, folder = np.random.default_rng(5), tmp_path / "data"
    folder.mkdir()
    cases = [write_case(folder, f"c{i}", rng) for i in range(7)]
    unlabelled = [{"case": case["case"], "image": case["image"]} for case in cases[3:]]
    table = {"labels": {"background": 0, "cube": 1}, "training": cases[:2], "validation": cases[2:3]}
    (folder / "dataset.json").write_text(json.dumps({**table, "unlabelled": unlabelled}))
    return tmp_path


def recipe(home: Path, stage: StageRecipe = STAGE, **changes: Any) -> Recipe:
    plain = {"settings": {"consensus_grid": [16, 16, 16]}, "augment": Augment(elastic=0.02, blur=0.3), "device": "cpu"}
    facts = {"dataset": home / "data", "out": home / "out", "unlabelled_weight": 0.5, **plain, **changes}
    return Recipe("cube", (stage,), ("cube",), **facts)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_model(folder / "cube.toml", device="cpu").nets["consensus"].state_dict())


def test_a_cube_is_learned_from_two_labelled_and_four_unlabelled_volumes(home: Path) -> None:
    events = list(train(recipe(home, dataclasses.replace(STAGE, steps=120, steps_per_epoch=40))))
    told = [e.text for e in events if isinstance(e, Warned) and e.code == LEARNED_FROM]
    assert told == ["Learning from 2 labelled and 4 unlabelled volumes."]
    card = find_card(home / "out" / "cube.toml")
    assert card.scores["labels"]["cube"] > 0.6
    assert "chose nothing" in card.scored_on


def test_half_precision_is_left_where_torch_would_corrupt_memory_in_it(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Also on a processor that does not multiply it, where a recipe could not ask for it: nothing is computed in it.
    monkeypatch.setattr(distributed, "training_precision", lambda _device, wanted: wanted)
    plain = {"settings": {"consensus_grid": [8, 16, 136]}, "unlabelled_weight": 0.0}
    events = list(train(recipe(home, precision="bfloat16", **plain)))
    assert [e.text for e in events if isinstance(e, Warned) and e.code == "float32-training"] == [
        "consensus: trained in float32, since bfloat16 is not safe here."
    ]
    list(train(recipe(home, precision="float32", out=home / "plain", **plain)))
    found, expected = weights_of(home / "out"), weights_of(home / "plain")
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


def test_half_precision_is_kept_where_it_is_safe(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A processor that does not multiply it computes these small maps in it all the same, slowly.
    monkeypatch.setattr(distributed, "training_precision", lambda _device, wanted: wanted)
    plain = {"settings": {"consensus_grid": [8, 16, 128]}, "unlabelled_weight": 0.0}
    events = list(train(recipe(home, precision="bfloat16", **plain)))
    assert not [e for e in events if isinstance(e, Warned) and e.code == "float32-training"]
    list(train(recipe(home, precision="float32", out=home / "plain", **plain)))
    found, expected = weights_of(home / "out"), weights_of(home / "plain")
    assert not all(torch.equal(value, expected[name]) for name, value in found.items())


@pytest.fixture
def any_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network may teach however little it knows."""
    monkeypatch.setattr(stage_trainer, "_KNOWN", 0.0)


@pytest.mark.usefixtures("any_teacher")
def test_what_is_unlabelled_changes_the_weights_only_from_its_share_of_the_training_on(home: Path) -> None:
    without = [e.loss for e in train(recipe(home, unlabelled_weight=0.0)) if isinstance(e, StepDone)]
    late = recipe(home, unlabelled_from=0.5, out=home / "late")
    losses = [e.loss for e in train(late) if isinstance(e, StepDone)]
    assert losses[:4] == without[:4]
    assert losses[4:] != without[4:]


@pytest.mark.usefixtures("any_teacher")
def test_what_is_guessed_of_unlabelled_volumes_is_not_put_into_replayed_cases_with_other_classes(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(home / "data", home / "old")
    table = json.loads((home / "old" / "dataset.json").read_text())
    (home / "old" / "dataset.json").write_text(json.dumps({**table, "labels": {"background": 0, "slab": 1}}))
    replayed, own = [], []
    mix = stage_trainer.StageTrainer._mix

    def watched(trainer: Any, draws: Any, *rest: Any) -> Any:
        mixed = mix(trainer, draws, *rest)
        for case, drawn, new in zip(draws.cases, draws.labelled, mixed, strict=True):
            if draws.unlabelled:
                (own if case < 2 else replayed).append(new is not drawn)
        return mixed

    monkeypatch.setattr(stage_trainer.StageTrainer, "_mix", watched)
    old = Replay(home / "old", classes=("slab", "cube"))
    both = dataclasses.replace(recipe(home, unlabelled_from=0.0), labels=("slab", "cube"), replay=(old,))
    list(train(both))
    assert replayed
    assert not any(replayed)
    assert own
    assert all(own)


def test_a_network_that_does_not_know_a_class_labels_no_volume(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without = [e.loss for e in train(recipe(home, unlabelled_weight=0.0)) if isinstance(e, StepDone)]
    monkeypatch.setattr(stage_trainer, "_KNOWN", 1.1)
    never = [e.loss for e in train(recipe(home, out=home / "never")) if isinstance(e, StepDone)]
    assert never == without


@pytest.mark.parametrize(
    ("found", "weights"),
    [
        (0.0, [1, 0.75, 0.5, 0.25, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),  # at once: they fade from the start
        (1.1, [1, 0.75, 1, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0, 0, 0, 0]),  # never: from the middle on
    ],
)
def test_class_weights_fade_once_every_class_was_found_and_at_last_from_the_middle_on(
    home: Path, monkeypatch: pytest.MonkeyPatch, found: float, weights: list[float]
) -> None:
    monkeypatch.setattr(stage_trainer, "_FOUND", found)
    seen: list[float] = []
    forward = SoftDiceCELoss.forward

    def watched(loss: SoftDiceCELoss, *given: torch.Tensor) -> torch.Tensor:
        seen.append(loss.emphasis)
        return forward(loss, *given)

    monkeypatch.setattr(SoftDiceCELoss, "forward", watched)
    stage = dataclasses.replace(STAGE, steps=16, steps_per_epoch=2)
    list(train(recipe(home, stage, unlabelled_weight=0.0)))
    assert seen == pytest.approx(weights)


def test_the_dice_of_a_batch_is_per_structure_and_nan_where_it_is_not() -> None:
    target = torch.zeros(1, 4, 2, 4, 4)
    target[:, 1, :, :2], target[:, 2, :, 2:] = 1, 1
    guess = torch.zeros_like(target)
    guess[:, 1] = 1
    found = soft_dice(guess, target)
    assert found[:2].tolist() == pytest.approx([2 * 16 / (32 + 16), 0])
    assert found[2].isnan()


def test_a_stage_without_a_moving_average_has_no_teacher_and_learns_from_labels_alone(home: Path) -> None:
    events = list(train(recipe(home, dataclasses.replace(STAGE, ema=0.0))))
    assert not [e for e in events if isinstance(e, Warned) and e.code == LEARNED_FROM]


def test_an_unlabelled_volume_that_cannot_be_read_is_left_out_with_a_warning(home: Path) -> None:
    (home / "data" / "c5.nii.gz").write_bytes(b"nothing")
    told = [e.text for e in train(recipe(home)) if isinstance(e, Warned)]
    assert any(text.startswith("c5 cannot be learned from") for text in told)
    assert "Learning from 2 labelled and 3 unlabelled volumes." in told


def learned_from(events: Iterable[Any]) -> list[str]:
    return [e.text for e in events if isinstance(e, Warned) and e.code == LEARNED_FROM]


def unlabelled_folder(home: Path, **changes: Any) -> Recipe:
    """Return a recipe of listed cases, and of the folder `scans` for what has no labels."""
    data = home / "data"
    cases = [Case(f"c{i}", (data / f"c{i}.nii.gz",), data / f"c{i}-labels.nii.gz") for i in range(3)]
    lists = {"dataset": None, "training": tuple(cases[:2]), "validation": tuple(cases[2:])}
    return recipe(home, **{**lists, "unlabelled": home / "scans", **changes})


def test_every_volume_below_a_folder_of_unlabelled_ones_is_learned_from(home: Path) -> None:
    (home / "scans" / "older visits").mkdir(parents=True)
    shutil.copy(home / "data" / "c3.nii.gz", home / "scans" / "ä b.nii.gz")
    write_volume(read_volume(home / "data" / "c4.nii.gz"), home / "scans" / "older visits" / "c4.nrrd")
    (home / "scans" / "notes.txt").write_text("no volume")
    assert learned_from(train(unlabelled_folder(home))) == ["Learning from 2 labelled and 2 unlabelled volumes."]


def test_a_folder_of_unlabelled_volumes_gives_none_that_is_labelled_held_out_or_a_mask(home: Path) -> None:
    shutil.copytree(home / "data", home / "scans", ignore=lambda *_: ["c3.nii.gz"])
    for image in (home / "scans").glob("*-labels.nii.gz"):
        image.unlink()
    shutil.copy(home / "data" / "c2.nii.gz", home / "scans" / "another name.nii.gz")  # held out
    shutil.copy(home / "data" / "c0-labels.nii.gz", home / "scans" / "c4_seg.nii.gz")
    (home / "scans" / "c4_seg.nii.gz.json").write_text(json.dumps({"format": "napari-fmseg run 1"}))  # as we write it
    told = [e.text for e in train(unlabelled_folder(home)) if isinstance(e, Warned)]
    assert "Learning from 2 labelled and 3 unlabelled volumes." in told
    assert (
        "4 volume(s) that should have no labels are left out, since they show labelled cases, such as another name."
    ) in told


def test_labelled_cases_and_their_labels_may_lie_in_the_folder_of_unlabelled_volumes(home: Path) -> None:
    for i in range(3, 7):
        (home / "data" / f"c{i}-labels.nii.gz").unlink()
    events = list(train(unlabelled_folder(home, unlabelled=home / "data")))
    assert learned_from(events) == ["Learning from 2 labelled and 4 unlabelled volumes."]
    assert not [e for e in events if isinstance(e, Warned) and "left out" in e.text]


def test_numbered_files_in_a_folder_of_unlabelled_volumes_are_channels_of_one(home: Path) -> None:
    data, scans = home / "data", home / "scans"
    scans.mkdir()
    for name, parts in {"a": ("c3", "c4"), "b": ("c5",)}.items():
        for i, part in enumerate(parts):
            shutil.copy(data / f"{part}.nii.gz", scans / f"{name}_{i:04d}.nii.gz")
    lists = {
        part: tuple(Case(f"c{i}", (data / f"c{i}.nii.gz",) * 2, data / f"c{i}-labels.nii.gz") for i in numbers)
        for part, numbers in {"training": (0, 1), "validation": (2,)}.items()
    }
    told = [e.text for e in train(unlabelled_folder(home, channels=("T1", "T2"), **lists)) if isinstance(e, Warned)]
    assert "Learning from 2 labelled and 1 unlabelled volumes." in told
    missing = "b_0000 has 1 channel(s) and the recipe 2 (T1, T2). Is a file missing?"
    assert f"b_0000 cannot be learned from without labels: {missing}" in told


@pytest.mark.parametrize("content", [None, "scans", "scans/notes.txt"])
def test_a_folder_of_unlabelled_volumes_that_is_missing_or_has_none_is_refused(home: Path, content: str | None) -> None:
    if content is not None:
        (home / content).parent.mkdir(exist_ok=True)
        (home / content).write_text("no volume")
    with pytest.raises(InvalidRecipe, match=r"unlabelled: There is no .*scans"):
        next(iter(train(unlabelled_folder(home))))


@pytest.mark.usefixtures("any_teacher")
@pytest.mark.parametrize("unlabelled_weight", [0.0, 0.5])
def test_a_run_that_stopped_after_an_epoch_ends_with_the_same_weights(home: Path, unlabelled_weight: float) -> None:
    given = {"unlabelled_weight": unlabelled_weight}
    list(train(recipe(home, **given)))
    events: Iterator[Any] = train(recipe(home, out=home / "cut", **given))
    for event in events:
        if isinstance(event, StepDone) and event.step == 6:
            events.close()  # type: ignore[attr-defined]
            break
    steps = [e.step for e in train(recipe(home, out=home / "cut", **given)) if isinstance(e, StepDone)]
    assert steps == [5, 6, 7, 8]
    whole, resumed = weights_of(home / "out"), weights_of(home / "cut")
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


class Clock:
    """A clock on which every look takes a twentieth of a second."""

    def __init__(self) -> None:
        self.looks = itertools.count()

    def perf_counter(self) -> float:
        return next(self.looks) * 0.05

    process_time = perf_counter


@pytest.mark.parametrize("guess", [2, 20, 400])
def test_a_stage_takes_its_minutes_whatever_the_guess_of_its_steps_was(
    home: Path, monkeypatch: pytest.MonkeyPatch, guess: int
) -> None:
    monkeypatch.setattr(
        stage_trainer,
        "time",
        SimpleNamespace(**{n: getattr(Clock(), n) for n in ("perf_counter",)}, process_time=Clock().process_time),
    )
    timed = dataclasses.replace(STAGE, minutes=5 / 60, steps=4 * guess, steps_per_epoch=guess)
    events = list(train(recipe(home, timed)))
    steps = [e.step for e in events if isinstance(e, StepDone)]
    assert steps == list(range(1, len(steps) + 1))
    assert 80 <= len(steps) <= 105  # a hundred looks at the clock, some of them between epochs
    assert len([e for e in events if isinstance(e, EpochDone)]) == 4
    assert isinstance(events[-1], Saved)
    # The schedule goes by the time, too: a short first epoch is not a quarter of it.
    first = next(i for i, e in enumerate(events) if isinstance(e, EpochDone))
    for event in events[first:]:
        if isinstance(event, StepDone) and event.step > len(steps) / 10:  # after the rise
            wanted = rate_of(timed, (event.step - 1) / len(steps), 1 / len(steps))
            assert event.lr == pytest.approx(timed.lr * wanted, abs=0.25 * timed.lr)


def test_the_average_follows_the_weights_and_forgets_at_its_decay() -> None:
    net = build("fastunet", in_channels=1, n_classes=2, **NET)
    average = WeightAverage(net, 0.9)
    before = [p.clone() for p in net.parameters()]
    with torch.no_grad():
        for p in net.parameters():
            p.add_(1)
    average.update(net, 10_000)
    for own, old in zip(average.net.parameters(), before, strict=True):
        assert torch.allclose(own, old + 0.1, atol=1e-5)
    average.update(net, 0)  # the first steps tell nothing yet
    for own, old in zip(average.net.parameters(), before, strict=True):
        assert torch.allclose(own, old + 0.91, atol=1e-5)


def test_norms_and_biases_do_not_decay() -> None:
    net = build("fastunet", in_channels=1, n_classes=2, **NET)
    groups = make_optimiser(dataclasses.replace(STAGE, weight_decay=0.1), net).param_groups
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert all(p.ndim > 1 for p in groups[0]["params"])
    assert all(p.ndim == 1 for p in groups[1]["params"])
    assert sum(len(group["params"]) for group in groups) == len(list(net.parameters()))


def test_the_rate_rises_over_a_twentieth_and_falls_to_a_thousandth() -> None:
    rates = [rate_of(STAGE, i / 100) for i in range(101)]
    assert rates[0] < 0.05
    assert 0.95 < max(rates) <= 1.01
    assert rates.index(max(rates)) == 5
    assert rates[-1] == pytest.approx(1e-3)


def test_steps_without_a_finite_gradient_are_skipped_and_counted(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    turn = itertools.count()
    step = stage_trainer.optimiser_step
    monkeypatch.setattr(
        stage_trainer,
        "optimiser_step",
        lambda fabric, model, optimiser, loss, clip: step(
            fabric, model, optimiser, loss * (float("nan") if next(turn) == 3 else 1), clip
        ),
    )
    told = [e.text for e in train(recipe(home)) if isinstance(e, Warned) and e.code == "skipped-steps"]
    assert told == ["consensus: 1 of 8 steps had no finite gradient and were skipped."]
    assert all(torch.isfinite(value).all() for value in weights_of(home / "out").values())


def test_the_unlabelled_cases_of_a_folder_are_those_that_it_lists(home: Path) -> None:
    assert [case.name for case in find_unlabelled(home / "data")] == ["c3", "c4", "c5", "c6"]
    assert all(case.labels is None for case in find_unlabelled(home / "data"))
    table = json.loads((home / "data" / "dataset.json").read_text())
    table["unlabelled"][0] = "./c3.nii.gz"  # as the Decathlon lists its tests
    (home / "data" / "dataset.json").write_text(json.dumps(table))
    assert [case.name for case in find_unlabelled(home / "data")] == ["c3", "c4", "c5", "c6"]


@pytest.mark.parametrize(("field", "value"), [("keep", "first"), ("ema", 1.0), ("minutes", -1.0)])
def test_a_wrong_way_to_train_is_refused(field: str, value: object) -> None:
    with pytest.raises(InvalidRecipe, match=field):
        dataclasses.replace(STAGE, **{field: value})


def test_a_wrong_clock_is_refused(home: Path) -> None:
    with pytest.raises(InvalidRecipe, match="clock is wall or processor"):
        recipe(home, clock="sun")


def test_labelled_samples_exchange_boxes_as_often_as_the_recipe_says(home: Path) -> None:
    losses = [
        [
            e.loss
            for e in train(recipe(home, unlabelled_weight=0.0, augment=Augment(mix=mix), out=home / f"mix{mix}"))
            if isinstance(e, StepDone)
        ]
        for mix in (0.0, 1.0)
    ]
    assert losses[0][0] != losses[1][0]

"""The folder of a run: one training writes into it, whoever's run it is; checkpoints are whole, or told in words."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import numpy as np
import pytest
import torch

from napari_fmseg.core.atomic_write import atomic_write
from napari_fmseg.core.errors import InvalidRecipe, UnwritableVolume, WeightsMismatch
from napari_fmseg.core.events import Progress, Saved, StepDone
from napari_fmseg.core.volume import Geometry, LabelMap, Volume
from napari_fmseg.datasets.run_folder import claim_run_folder
from napari_fmseg.io import write_labels, write_volume
from napari_fmseg.training import Case, Fusion, PretrainRecipe, Recipe, StageRecipe, pretrain, train
from napari_fmseg.training.checkpoint import load_checkpoint, save_checkpoint

GRID = Geometry.from_spacing((12, 16, 16), (2.0, 1.0, 1.0))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two small volumes with labels, below a folder of their own."""
    for i in range(2):
        values = np.random.default_rng(i).normal(size=GRID.shape).astype(np.float32)
        marks = np.zeros(GRID.shape, np.uint8)
        marks[3:9, 4:12, 4:12] = 1
        write_volume(Volume(values + 3 * marks, GRID), tmp_path / "data" / f"v{i}.nii.gz")
        write_labels(LabelMap(marks, GRID), tmp_path / "truth" / f"v{i}.nii.gz")
    return tmp_path / "data"


def lesson(data: Path, out: Path, **changes: object) -> Recipe:
    cases = tuple(Case(f"v{i}", (data / f"v{i}.nii.gz",), data.parent / "truth" / f"v{i}.nii.gz") for i in range(2))
    stage = StageRecipe("net", "unet3d", steps=2, steps_per_epoch=1, batch=1, kwargs={"width": 2})
    facts = {
        "name": "m",
        "labels": ("a",),
        "training": cases,
        "out": out,
        "device": "cpu",
        "pipeline": "single",
        "settings": {"window": [16, 16, 16]},
        "stages": (stage,),
    }
    return Recipe(**{**facts, **changes})  # type: ignore[arg-type]


def pretext(volumes: Path, out: Path) -> PretrainRecipe:
    fusion = Fusion((16, 20, 20), 2, block=((4, 4, 4), (8, 8, 8)))
    kwargs = {"widths": [4, 4, 4, 4, 4]}
    return PretrainRecipe("p", volumes, out, kwargs=kwargs, fusion=fusion, steps=2, steps_per_epoch=1, device="cpu",
                          validate_samples=1)  # fmt: skip


@contextlib.contextmanager
def files_end_at(size: int) -> Iterator[None]:
    """Limit the size of files to so many bytes, which looks like a full disk."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# --- one at a time ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["train", "pretrain"])
def test_a_second_training_into_a_folder_is_refused_until_the_first_has_ended(
    kind: str, data: Path, tmp_path: Path
) -> None:
    def begin() -> Iterator[object]:
        return train(lesson(data, tmp_path / "out")) if kind == "train" else pretrain(pretext(data, tmp_path / "out"))

    first = begin()
    assert isinstance(next(first), Progress)
    with pytest.raises(InvalidRecipe, match="Another training is writing into"):
        next(begin())
    first.close()  # type: ignore[attr-defined]
    again = begin()
    assert isinstance(next(again), Progress)
    again.close()  # type: ignore[attr-defined]


def test_a_killed_training_holds_nothing(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom napari_fmseg.datasets.run_folder import claim_run_folder\n"
        "with claim_run_folder(Path(sys.argv[1])):\n    print('held', flush=True)\n    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(InvalidRecipe, match="Another training"), claim_run_folder(tmp_path):
            pass
        other.kill()
        other.wait()
        with claim_run_folder(tmp_path):
            pass


def test_a_process_that_follows_another_one_waits_for_no_lock(tmp_path: Path, monkeypatch) -> None:
    with claim_run_folder(tmp_path):
        monkeypatch.setenv("LOCAL_RANK", "1")
        with claim_run_folder(tmp_path):
            pass


# --- whose it is ------------------------------------------------------------------------------------------------


def test_a_pretraining_goes_on_from_wherever_its_folder_is_named(data: Path, tmp_path: Path, monkeypatch) -> None:
    with contextlib.closing(pretrain(pretext(data, tmp_path / "out"))) as first:
        assert any(isinstance(event, StepDone) for event in first)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(data)
    for volumes in (Path("data"), Path("out/../data"), Path("link")):
        with contextlib.closing(pretrain(pretext(volumes, Path("out")))) as again:
            assert isinstance(next(again), Progress)
    with pytest.raises(InvalidRecipe, match="another recipe"):
        next(pretrain(pretext(tmp_path / "truth", Path("out"))))


def test_a_training_goes_on_from_wherever_its_cases_are_named(data: Path, tmp_path: Path, monkeypatch) -> None:
    with contextlib.closing(train(lesson(data, tmp_path / "out"))) as first:
        assert isinstance(next(first), Progress)
    monkeypatch.chdir(tmp_path)
    with contextlib.closing(train(lesson(Path("data"), Path("out")))) as again:
        assert isinstance(next(again), Progress)


def test_a_run_of_an_earlier_version_goes_on_with_the_mark_that_it_has(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"recipe_sha256": "old", "recipe": {}}))
    (tmp_path / "0-net.pt").touch()
    with claim_run_folder(tmp_path, ["new", "old"]):
        pass
    with pytest.raises(InvalidRecipe, match="another recipe"), claim_run_folder(tmp_path, ["new"]):
        pass


def test_a_recipe_is_corrected_in_a_folder_in_which_nothing_was_trained(data: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidRecipe, match="no label 'b'"):
        list(train(lesson(data, tmp_path / "out", labels=("a", "b"), dataset=labelled_folder(data), training=())))
    assert isinstance(list(train(lesson(data, tmp_path / "out")))[-1], Saved)
    with pytest.raises(InvalidRecipe, match="another recipe"):
        list(train(lesson(data, tmp_path / "out", seed=1)))


def labelled_folder(data: Path) -> Path:
    """Write a dataset.json for the volumes of `data`."""
    cases = [{"image": f"{data}/v{i}.nii.gz", "label": f"{data.parent}/truth/v{i}.nii.gz"} for i in range(2)]
    (data / "dataset.json").write_text(json.dumps({"labels": {"a": 1}, "training": cases}))
    return data


@pytest.mark.parametrize("mark", [b"", b"[]", b"[" * 100_000, b"\xff", b"{}", b'{"recipe_sha256": 5}'])
def test_a_damaged_mark_is_told_by_its_file(mark: bytes, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_bytes(mark)
    with pytest.raises(InvalidRecipe, match=r"run\.json cannot be read"), claim_run_folder(tmp_path, ["a"]):
        pass


# --- checkpoints ------------------------------------------------------------------------------------------------


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch evil",)


def evil(path: Path) -> None:
    torch.save({"net": {}, "state": Evil()}, path)


@pytest.mark.parametrize(
    "spoil",
    [
        evil,
        lambda path: path.write_bytes(pickle.dumps(Evil())),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:500]),
        lambda path: torch.save([1, 2], path),
        lambda path: torch.save({"net": {}}, path),
        lambda path: torch.save({"net": {}, "state": 5}, path),
    ],
    ids=["code", "pickle", "empty", "cut", "list", "part", "no table"],
)
def test_a_checkpoint_that_is_none_is_told_without_advice_to_open_it_unsafely(
    spoil, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "0-net.pt"
    save_checkpoint(path, {"net": {"w": torch.ones(3)}, "state": {}})
    assert load_checkpoint(path, ("net", "state")) is not None
    spoil(path)
    with pytest.raises(WeightsMismatch, match=r"0-net\.pt is damaged") as caught:
        load_checkpoint(path, ("net", "state"))
    assert "weights_only" not in str(caught.value)
    assert not (tmp_path / "evil").exists()


def test_a_training_whose_checkpoint_was_replaced_ends_with_a_sentence(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    list(pretrain(pretext(data, out)))
    for content in ({"net": {}, "optimiser": {}, "state": {}}, {"net": 1}):
        torch.save(content, out / "checkpoint.pt")
        with pytest.raises(WeightsMismatch, match=r"checkpoint\.pt is damaged"):
            list(pretrain(pretext(data, out)))
    list(train(lesson(data, tmp_path / "lesson")))
    torch.save(
        {name: {} for name in ("net", "best", "optimiser", "scheduler", "state")}, tmp_path / "lesson" / "0-net.pt"
    )
    with pytest.raises(WeightsMismatch, match=r"0-net\.pt is damaged"):
        list(train(lesson(data, tmp_path / "lesson")))


def test_a_full_disk_is_told_as_one_and_the_checkpoint_before_stays(tmp_path: Path) -> None:
    path = tmp_path / "0-net.pt"
    save_checkpoint(path, {"net": {"w": torch.ones(3)}})
    before = path.read_bytes()
    with files_end_at(50_000), pytest.raises(UnwritableVolume, match=r"full.*run it again") as caught:
        save_checkpoint(path, {"net": {"w": torch.ones(10**6)}})
    assert caught.value.exit_code == 3
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["0-net.pt"]
    assert torch.equal(load_checkpoint(path, ("net",))["net"]["w"], torch.ones(3))  # type: ignore[index]


VALUES = np.random.default_rng(0).integers(0, 255, 300_000, np.uint8)


def zipped(file: IO[bytes]) -> None:
    with zipfile.ZipFile(file, "w") as packed:
        packed.writestr("a", VALUES.tobytes())


@pytest.mark.parametrize(
    "write",
    [
        lambda file: torch.save(torch.from_numpy(VALUES), file),
        lambda file: np.save(file, VALUES),
        lambda file: np.savez(file, values=VALUES),
        lambda file: file.write(VALUES.tobytes()),
        zipped,
    ],
    ids=["torch", "numpy", "npz", "bytes", "zip"],
)
def test_whatever_writes_a_full_disk_is_told_as_one(write: Callable[[IO[bytes]], object], tmp_path: Path) -> None:
    def written() -> None:
        with files_end_at(50_000), atomic_write(tmp_path / "x") as file:
            write(file)

    with pytest.raises(UnwritableVolume, match="full") as caught:
        written()
    assert caught.value.exit_code == 3
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["train", "pretrain"])
def test_a_training_on_a_full_disk_goes_on_where_it_was_when_there_is_room(
    kind: str, data: Path, tmp_path: Path
) -> None:
    def begin() -> Iterator[object]:
        return train(lesson(data, tmp_path / "out")) if kind == "train" else pretrain(pretext(data, tmp_path / "out"))

    checkpoint = tmp_path / "out" / ("0-net.pt" if kind == "train" else "checkpoint.pt")
    run = begin()
    assert any(isinstance(event, Saved) for event in run)  # the first epoch is kept
    before = checkpoint.read_bytes()
    with files_end_at(len(before) // 2), pytest.raises(UnwritableVolume, match="full") as caught:
        list(run)
    assert caught.value.exit_code == 3
    assert checkpoint.read_bytes() == before
    steps = [event.step for event in begin() if isinstance(event, StepDone)]
    assert steps == [2]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device /dev/full of Linux")
def test_a_full_disk_while_the_history_is_written_is_told_as_one(data: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "history.jsonl").symlink_to("/dev/full")
    with pytest.raises(UnwritableVolume, match="full") as caught:
        list(pretrain(pretext(data, tmp_path / "out")))
    assert caught.value.exit_code == 3


def test_a_folder_that_may_not_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UnwritableVolume), claim_run_folder(tmp_path / "file" / "run"):
        pass


def test_a_recipe_stays_the_same_when_its_paths_are_resolved(data: Path, tmp_path: Path, monkeypatch) -> None:
    from napari_fmseg.training.recipe_file import resolve_paths

    monkeypatch.chdir(tmp_path)
    whole = lesson(data, tmp_path / "out", start_from=str(tmp_path / "m.toml"))
    relative = dataclasses.replace(lesson(Path("data"), tmp_path / "out"), start_from="m.toml")
    assert resolve_paths(relative) == resolve_paths(whole) == whole

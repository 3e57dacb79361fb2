import inspect
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from napari_fmseg.cli import main as cli_main
from napari_fmseg.cli import train as train_commands
from napari_fmseg.core.events import Progress
from napari_fmseg.core.volume import Geometry, LabelMap, Volume
from napari_fmseg.io import read_labels, read_volume, write_labels, write_volume

ROOT = Path(__file__).parents[2]
SHAPE = (20, 24, 22)


def run(*words):
    return cli_main.main([str(word) for word in words])


def volume(seed=0, shape=SHAPE):
    data = np.random.default_rng(seed).normal(100, 30, shape).astype(np.int16)
    turn = np.array([[1, 0, 0], [0, 0.8, -0.6], [0, 0.6, 0.8]])
    return Volume(data, Geometry.from_spacing(shape, (2.5, 1.0, 1.2), (5, -7, 9), turn))


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch, save_tiny_model):
    """A user's folder of its own with one untrained model; a defect shows its traceback."""
    place = tmp_path / "home"
    monkeypatch.setenv("FMSEG_HOME", str(place))
    monkeypatch.setenv("FMSEG_DEBUG", "")
    save_tiny_model(place / "models")
    return place


@pytest.fixture
def image(tmp_path):
    return write_volume(volume(), tmp_path / "case.nii.gz")


def test_segment_writes_labels_on_the_image_with_a_manifest(image, tmp_path, capsys):
    out = tmp_path / "out" / "mask.nii.gz"
    assert run("segment", image, "--model", "tiny", "--output", out, "--device", "cpu") == 0
    labels = read_labels(out)
    assert labels.geometry.matches(read_volume(image).geometry)
    manifest = json.loads((tmp_path / "out" / "mask.nii.gz.json").read_text())
    assert manifest["model"]["name"] == "tiny"
    assert manifest["threads"] >= 1
    assert len(manifest["model"]["weights_sha256"]) == 64
    assert {"reading", "consensus", "labels", "writing"} <= manifest["seconds"].keys()
    assert manifest["device"] == "cpu"
    told = capsys.readouterr()
    assert "mask.nii.gz" in told.out
    assert "liver" in told.out
    assert "Not a medical device" in told.err


def test_events_of_a_segmentation_can_be_followed_by_another_program(image, tmp_path, capsys):
    out = tmp_path / "mask.seg.nrrd"
    assert run("segment", image, "--model", "tiny", "--output", out, "--device", "cpu", "--events") == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {event["event"] for event in events} >= {"Progress", "StageResult", "Done"}
    done = events[-1]
    assert (done["event"], done["output"]) == ("Done", str(out))
    assert dict(read_labels(out).names) == {1: "liver", 2: "tumour"}


def test_manifest_tells_nothing_of_the_patient(tmp_path):
    image = write_volume(volume(), tmp_path / "Doe_Jane_1970" / "Doe_Jane.nii.gz")
    out = tmp_path / "out" / "mask.nii.gz"
    assert run("segment", image, "--model", "tiny", "--output", out) == 0
    text = (tmp_path / "out" / "mask.nii.gz.json").read_text()
    assert "Doe" not in text
    assert str(tmp_path) not in text
    assert "ml" not in json.loads(text)["result"]


def test_the_manifest_names_the_hash_of_its_result(image, tmp_path):
    import hashlib

    out = tmp_path / "mask.nrrd"
    assert run("segment", image, "--model", "tiny", "--output", out) == 0
    manifest = json.loads((tmp_path / "mask.nrrd.json").read_text())
    assert manifest["result"] == {"file": "mask.nrrd", "sha256": hashlib.sha256(out.read_bytes()).hexdigest()}


def test_segment_goes_on_past_a_bad_volume_and_lists_it(image, tmp_path, capsys):
    bad = tmp_path / "broken.nii.gz"
    bad.write_bytes(image.read_bytes()[:200])
    other = write_volume(volume(1), tmp_path / "other.mha")
    out = tmp_path / "out"
    assert run("segment", image, bad, other, "--model", "tiny", "--output", out) == 1
    assert sorted(p.name for p in out.iterdir()) == [
        "case_seg.nii.gz", "case_seg.nii.gz.json", "failed.csv", "other_seg.mha", "other_seg.mha.json",
    ]  # fmt: skip
    told = capsys.readouterr()
    assert "1 of 3 volumes failed" in told.err
    assert told.err.strip().count("broken.nii.gz") >= 2


def test_a_path_that_does_not_exist_holds_up_no_other(tmp_path, capsys):
    image = write_volume(volume(), tmp_path / "case.nii.gz")
    missing = tmp_path / "missing.nii.gz"
    assert run("segment", missing, image, "--model", "tiny", "--output", tmp_path / "out") == 1
    assert (tmp_path / "out" / "case_seg.nii.gz").exists()
    assert "1 of 2 volumes failed" in capsys.readouterr().err


def test_segment_takes_a_folder_of_volumes(tmp_path):
    for n in range(2):
        write_volume(volume(n), tmp_path / "in" / f"case{n}.nii.gz")
    assert run("segment", tmp_path / "in", "--model", "tiny", "--output", tmp_path / "out") == 0
    assert len(list((tmp_path / "out").glob("*_seg.nii.gz"))) == 2


def test_an_empty_file_in_a_folder_is_listed_and_not_passed_over(tmp_path, capsys):
    write_volume(volume(), tmp_path / "in" / "good.nii.gz")
    (tmp_path / "in" / "lost.nii.gz").write_bytes(b"")
    assert run("segment", tmp_path / "in", "--model", "tiny", "--output", tmp_path / "out") == 1
    assert "1 of 2 volumes failed" in capsys.readouterr().err
    assert (tmp_path / "out" / "good_seg.nii.gz").exists()


def test_two_volumes_of_one_name_do_not_overwrite_each_other(tmp_path):
    for folder in ("a", "b"):
        write_volume(volume(), tmp_path / folder / "image.nii.gz")
    images = [tmp_path / f / "image.nii.gz" for f in "ab"]
    assert run("segment", *images, "--model", "tiny", "--output", tmp_path / "out") == 0
    names = sorted(p.name for p in (tmp_path / "out").glob("*.nii.gz"))
    assert names == ["image-2_seg.nii.gz", "image_seg.nii.gz"]


def test_segment_writes_stages_each_on_its_own_grid_and_a_picture(image, tmp_path):
    stages, picture = tmp_path / "stages", tmp_path / "view.png"
    assert run("segment", image, "--model", "tiny", "--output", tmp_path / "m.nii.gz",
               "--stages-dir", stages, "--preview", picture, "--until", "consensus") == 0  # fmt: skip
    assert [p.name for p in sorted(stages.iterdir())] == ["m_1-consensus.nii.gz"]
    assert read_labels(stages / "m_1-consensus.nii.gz").geometry.shape == (32, 32, 32)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_segment_json_is_one_document(image, tmp_path, capsys):
    missing_later = tmp_path / "broken.nii.gz"
    missing_later.write_bytes(b"\x1f\x8b rubbish")
    out = tmp_path / "out"
    assert run("segment", image, missing_later, "--model", "tiny", "--output", out, "--json") == 1
    document = json.loads(capsys.readouterr().out)
    assert document["failed"] == 1
    assert Path(document["results"][0]["output"]).exists()
    assert set(document["results"][0]["volumes_ml"]) == {"liver", "tumour"}
    assert document["results"][1]["error"]["kind"] == "UnreadableVolume"


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["segment", "{image}", "--model", "nothing", "--output", "{tmp}/m.nii.gz"], 1, "There is no model 'nothing'"),
        (["segment", "{tmp}/none.nii", "--model", "tiny", "--output", "{tmp}/m.nii.gz"], 1, "none.nii"),
        (["segment", "{image}", "--model", "tiny", "--output", "{tmp}/m.png"], 1, "suffix"),
        (["segment", "{image}", "--model", "tiny", "--output", "{image}"], 1, "overwrite"),
        (["segment", "{image}", "{image}", "--model", "tiny", "--output", "{tmp}/m.nii.gz"], 1, "2 volumes"),
        (["segment", "{tmp}/home/models", "--model", "tiny", "--output", "{tmp}/o"], 1, "no volume in"),
        (["segment", "{image}", "--model", "tiny", "--output", "{tmp}/m.nii.gz", "--until", "x"], 1, "no stage 'x'"),
        (["segment", "--model", "tiny", "--output", "{tmp}/m.nii.gz"], 2, "nothing to segment"),
        (["segment", "{image}", "--output", "{tmp}/m.nii.gz"], 2, "--model"),
        (["segmentt"], 2, "segmentt"),
        (["score", "{image}"], 2, "TRUTH"),
        (["train", "{tmp}/none.toml"], 1, "There is no"),
        (["explain", "{image}", "--model", "tiny", "--label", "²", "--output", "{tmp}/a.nii.gz"], 1, "no class '²'"),
        (["export", "{image}", "--output", "{tmp}/a.nii.gz", "--format", "stl"], 1, "a.nii.gz is no stl"),
        (["export", "{image}", "--output", "{tmp}/a.stl", "--format", "nrrd"], 1, "a.stl is no nrrd"),
        (["bench", "--model", "nothing"], 1, "There is no model"),
    ],
)
def test_a_mistake_ends_with_its_code_a_sentence_and_no_traceback(image, tmp_path, capsys, words, code, text):
    before = sorted(tmp_path.rglob("*"))
    assert run(*[w.format(image=image, tmp=tmp_path) for w in words]) == code
    told = capsys.readouterr()
    assert text in told.out + told.err
    assert "Traceback" not in told.err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("words", [["--help"], [], ["segment", "--help"]])
def test_help_says_what_it_is_for(words, capsys):
    assert run(*words) == 0
    assert "Research use only" in capsys.readouterr().out.replace("\n", " ")


@pytest.mark.parametrize("command", ["segment", "evaluate", "export", "pretrain", "models export"])
def test_the_output_has_a_short_option_as_in_other_programs(command, capsys):
    assert run(*command.split(), "--help") == 0
    assert "-o PATH, --output PATH" in capsys.readouterr().out.replace("{None}|", "")


def test_what_restricts_a_model_is_shown_before_its_first_use_only(home, image, tmp_path, capsys, save_tiny_model):
    save_tiny_model(home / "models", name="atrium", restriction="Not for commercial use.")
    words = ("segment", image, "--model", "atrium", "--output", tmp_path / "m.nii.gz")
    assert run(*words) == 0
    assert "Not for commercial use." in capsys.readouterr().err
    assert run(*words) == 0
    assert "Not for commercial use." not in capsys.readouterr().err
    save_tiny_model(home / "models", name="atrium", restriction="Not for any use.")
    assert run(*words) == 0
    assert "Not for any use." in capsys.readouterr().err


def test_who_does_not_accept_the_terms_does_not_run_the_model(
    home, image, tmp_path, capsys, monkeypatch, save_tiny_model
):
    save_tiny_model(home / "models", name="atrium", restriction="Not for commercial use.")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys.stdin, "readline", lambda: "\n", raising=False)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    words = ("segment", image, "--model", "atrium", "--output", tmp_path / "m.nii.gz")
    assert run(*words) == 1
    assert "not accepted" in capsys.readouterr().err
    assert not (tmp_path / "m.nii.gz").exists()
    assert run(*words, "--accept-licence") == 0


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (MemoryError(), 3, "not enough memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"), 3, "memory"),
        (OSError(28, "No space left on device", "x"), 3, "disk is full"),
        (PermissionError(13, "Permission denied", "x"), 1, "x: Permission denied"),
        (ZeroDivisionError("by nothing"), 70, "FMSEG_DEBUG=1"),
        (KeyboardInterrupt(), 130, "Stopped"),
    ],
)
def test_the_code_tells_the_machine_from_the_input_from_a_defect(monkeypatch, capsys, error, code, text):
    def fail() -> int:
        raise error

    monkeypatch.setattr("napari_fmseg.cli.models.models", fail)
    assert run("models") == code
    told = capsys.readouterr().err
    assert text in told
    assert "Traceback" not in told


def test_out_of_memory_of_torch_is_the_machine_s(monkeypatch, capsys):
    torch = pytest.importorskip("torch")

    def fail() -> int:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB")

    monkeypatch.setattr("napari_fmseg.cli.models.models", fail)
    assert run("models") == 3
    assert "9.00 GiB" in capsys.readouterr().err


def test_a_defect_shows_its_traceback_when_asked(monkeypatch):
    def fail() -> int:
        raise ZeroDivisionError

    monkeypatch.setattr("napari_fmseg.cli.models.models", fail)
    monkeypatch.setenv("FMSEG_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        run("models")


def test_an_error_with_json_is_a_document_too(capsys, tmp_path):
    assert run("score", tmp_path / "a.nii", tmp_path / "b.nii", "--json") == 1
    assert json.loads(capsys.readouterr().out)["error"]["kind"] == "UnreadableVolume"


def test_models_are_listed_with_what_they_segment_and_what_restricts_them(home, capsys, save_tiny_model):
    save_tiny_model(home / "models", name="atrium", restriction="Not for commercial use.")
    assert run("models") == 0
    told = capsys.readouterr().out
    row = next(line for line in told.splitlines() if line.startswith("tiny"))
    assert row.split() == ["tiny", "MR", "0.700", "-", "3", "Apache-2.0", "yours", "liver,", "tumour"]
    assert "atrium, restricted: Not for commercial use." in told
    assert run("models", "--json") == 0
    cards = {card["name"]: card for card in json.loads(capsys.readouterr().out)}
    assert cards["tiny"]["labels"] == {"1": "liver", "2": "tumour"}
    assert cards["tiny"]["mean_dice"] == pytest.approx(0.7)


def test_score_tells_every_label_as_table_and_as_json(tmp_path, capsys):
    data = np.zeros(SHAPE, np.uint8)
    data[5:10, 5:10, 5:10] = 1
    truth = LabelMap(data, volume().geometry, names={1: "liver", 2: "cyst"})
    write_labels(truth, tmp_path / "truth.nrrd")
    write_labels(LabelMap(np.roll(data, 1, 2), truth.geometry), tmp_path / "mask.nii.gz")
    assert run("score", tmp_path / "mask.nii.gz", tmp_path / "truth.nrrd") == 0
    told = capsys.readouterr().out
    assert "NSD 2 mm" in told
    assert next(line for line in told.splitlines() if line.startswith("liver")).split()[1] == "0.800"
    assert "mean Dice 0.800" in told
    assert run("score", tmp_path / "mask.nii.gz", tmp_path / "truth.nrrd", "--json", "--tolerance-mm", 1) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["labels"]["liver"]["dice"] == pytest.approx(0.8)
    assert document["tolerance_mm"] == 1


def test_score_refuses_two_meanings_of_a_number_unless_told_to_go_by_number(tmp_path, capsys):
    data = np.zeros(SHAPE, np.uint8)
    data[5:10, 5:10, 5:10] = 1
    for name in ("liver", "spleen"):
        write_labels(LabelMap(data, volume().geometry, names={1: name}), tmp_path / f"{name}.nrrd")
    assert run("score", tmp_path / "liver.nrrd", tmp_path / "spleen.nrrd") == 1
    assert "--by-number" in capsys.readouterr().err
    assert run("score", tmp_path / "liver.nrrd", tmp_path / "spleen.nrrd", "--by-number") == 0


def test_phantom_writes_an_image_and_its_labels(tmp_path, capsys):
    assert run("phantom", tmp_path / "ct.nii.gz", "--spacing", 12, 12, 12) == 0
    image, labels = read_volume(tmp_path / "ct.nii.gz"), read_labels(tmp_path / "ct_labels.nii.gz")
    assert labels.geometry.matches(image.geometry)
    assert labels.data.any()
    assert run("phantom", tmp_path / "folder", "--spacing", 12, 12, 12) == 0
    assert {p.name for p in (tmp_path / "folder").iterdir()} == {"phantom.nii.gz", "phantom_labels.nii.gz"}


def test_the_mask_does_not_depend_on_the_number_of_threads(image, tmp_path):
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    masks = []
    try:
        for n in (1, 3):
            torch.set_num_threads(n)
            out = tmp_path / f"{n}.nii.gz"
            assert run("segment", image, "--model", "tiny", "--output", out, "--device", "cpu") == 0
            assert json.loads((tmp_path / f"{n}.nii.gz.json").read_text())["threads"] == n
            masks.append(read_labels(out).data)
    finally:
        torch.set_num_threads(before)
    assert (masks[0] == masks[1]).all()


def test_doctor_gives_every_finding(capsys):
    code = run("doctor", "--json")
    findings = json.loads(capsys.readouterr().out)
    assert code == (3 if any(f["state"] == "bad" for f in findings) else 0)
    assert {"python", "torch", "memory", "disk", "model tiny"} <= {f["name"] for f in findings}
    run("doctor")
    assert "model tiny" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--help"], ["models"], ["score", "a.nii", "b.nii"], ["--version"]])
def test_commands_that_need_no_torch_load_none(words, tmp_path):
    code = (
        "import sys; from napari_fmseg.cli.main import main; main(sys.argv[1:]); "
        "bad = {'torch', 'monai', 'qtpy', 'napari', 'PyQt6'} & set(sys.modules); sys.exit(str(bad) if bad else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_the_list_of_commands_loads_nothing_that_reads_or_computes(tmp_path):
    code = (
        "import sys; from napari_fmseg.cli.main import main; main(['--help']); "
        "bad = {'numpy', 'torch', 'SimpleITK', 'nibabel', 'pydicom', 'psutil'} & set(sys.modules); "
        "sys.exit(str(bad) if bad else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in cli_main.COMMANDS)


@pytest.mark.parametrize("name", cli_main.COMMANDS)
def test_the_summary_of_a_listed_command_is_the_first_line_of_its_docstring(name):
    command = cli_main.COMMANDS[name]
    assert (inspect.getdoc(command.load()) or "").partition("\n")[0] == command.summary


def test_the_module_runs_as_a_program_and_survives_a_reader_that_leaves(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "napari_fmseg", "models", "--json"], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False,
    )  # fmt: skip
    assert done.returncode == 0
    assert done.stderr == ""
    assert "tiny" in {card["name"] for card in json.loads(done.stdout)}


@pytest.fixture
def recipe(tmp_path):
    """A recipe of two steps on three small cases in the nnU-Net raw layout."""
    pytest.importorskip("lightning_fabric")
    folder = tmp_path / "data"
    for n in range(3):
        image = volume(n)
        labels = np.zeros(SHAPE, np.uint8)
        labels[5:15, 6:16, 6:16] = 1
        image.data[labels == 1] += 200
        write_volume(image, folder / "imagesTr" / f"c{n}_0000.nii.gz")
        write_labels(LabelMap(labels, image.geometry), folder / "labelsTr" / f"c{n}.nii.gz")
    (folder / "dataset.json").write_text('{"labels": {"background": 0, "liver": 1}}')
    path = tmp_path / "recipe.toml"
    path.write_text("""
name = "learned"
dataset = "data"
out = "run"
labels = ["liver"]
holdout = ["c2"]
device = "cpu"
precision = "float32"
[settings]
consensus_grid = [32, 32, 32]
[[stages]]
stage = "consensus"
network = "snet"
steps = 2
steps_per_epoch = 1
[stages.kwargs]
width = 4
""")
    return path


def test_train_prints_events_as_json_lines_and_leaves_a_model(recipe, capsys, tmp_path):
    from napari_fmseg.core.events import EpochDone, Saved, from_json

    assert run("train", recipe, "--events") == 0
    events = [from_json(line) for line in capsys.readouterr().out.splitlines()]
    assert sum(isinstance(event, EpochDone) for event in events) >= 2
    assert [event.path.suffix for event in events if isinstance(event, Saved)][-1] == ".toml"
    image, card = tmp_path / "data" / "imagesTr" / "c2_0000.nii.gz", tmp_path / "run" / "learned.toml"
    assert run("segment", image, "--model", card, "--output", tmp_path / "mask.nii.gz") == 0


def test_train_tells_a_person_the_dice_of_every_epoch(recipe, capsys):
    assert run("train", recipe) == 0
    told = capsys.readouterr()
    assert told.out == ""
    assert "dice/liver" in told.err


def test_a_training_that_is_stopped_keeps_what_it_saved_and_goes_on(recipe, capsys, monkeypatch, tmp_path):
    from napari_fmseg.training import loop

    whole = loop.train

    def stopped(recipe):
        for event in whole(recipe):
            yield event
            if type(event).__name__ == "Saved":
                raise KeyboardInterrupt

    monkeypatch.setattr(loop, "train", stopped)
    assert run("train", recipe) == 130
    assert "What was saved stays" in capsys.readouterr().err
    monkeypatch.setattr(loop, "train", whole)
    assert run("train", recipe) == 0
    assert (tmp_path / "run" / "learned.toml").exists()


def test_convert_writes_weights_and_a_card_that_runs(tmp_path, image, capsys):
    torch = pytest.importorskip("torch")
    from napari_fmseg.nets import build

    net = build("snet", n_classes=2, width=4)
    torch.save({"net": net.state_dict(), "optimizer": {}, "epoch": 3}, tmp_path / "snet.pth")
    words = ("convert", tmp_path / "snet.pth", "--network", "snet", "--output", tmp_path / "new", "--n-classes", 2)
    assert run(*words) == 1
    assert "does not fit snet" in capsys.readouterr().err
    assert run(*words, "--width", 4) == 0
    assert (tmp_path / "new.toml").exists()
    assert run("segment", image, "--model", tmp_path / "new.toml", "--output", tmp_path / "m.nii.gz") == 0


def test_convert_refuses_a_file_that_would_run_code(tmp_path, capsys):
    torch = pytest.importorskip("torch")
    torch.save({"net": Path("x")}, tmp_path / "evil.pth")
    assert run("convert", tmp_path / "evil.pth", "--network", "snet", "--output", tmp_path / "new") == 1
    assert "refused" in capsys.readouterr().err
    assert not list(tmp_path.glob("new*"))


def test_bench_prints_one_document_with_parts_and_pairs(image, capsys):
    words = ("bench", "--image", image, "--model", "tiny", "--device", "cpu", "--repeats", 1)
    assert run(*words, "--no-compare", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert set(document["benchmark"]["parts"]) == {"reading", "consensus", "labels", "writing"}
    assert run(*words, "--no-compare") == 0
    assert "file to file" in capsys.readouterr().out


def test_pretrain_prints_events_as_json_lines_and_leaves_a_model(image, tmp_path, capsys):
    from napari_fmseg.core.events import EpochDone, Saved, from_json

    text = 'name = "volf"\nvolumes = "."\nout = "run"\nvalidate_samples = 1\n[kwargs]\nwidths = [2, 2, 2, 2, 2]\n'
    (tmp_path / "volf.toml").write_text(text)
    words = ("pretrain", tmp_path / "volf.toml", "--output", tmp_path / "other", "--steps", 2, "--patch", 17, 16, 16)
    assert run(*words, "--events") == 0
    events = [from_json(line) for line in capsys.readouterr().out.splitlines()]
    assert sum(isinstance(event, EpochDone) for event in events) == 1
    assert [event.path for event in events if isinstance(event, Saved)][-1] == tmp_path / "other" / "volf.toml"


def test_pretrain_of_a_folder_asks_where_to_write(image, capsys):
    assert run("pretrain", image.parent) == 1
    assert "--output" in capsys.readouterr().err


def test_asked_to_end_a_pretraining_is_closed_between_two_steps(capsys):
    before = signal.getsignal(signal.SIGTERM)
    closed = []

    def learning():
        try:
            yield Progress("first", 0, 3)
            signal.raise_signal(signal.SIGTERM)
            yield Progress("second", 1, 3)
            yield Progress("third", 2, 3)
        finally:
            closed.append(True)

    with pytest.raises(KeyboardInterrupt):
        train_commands._run(learning(), as_json=True, softly=True)
    assert closed == [True]
    assert signal.getsignal(signal.SIGTERM) == before
    assert [json.loads(line)["stage"] for line in capsys.readouterr().out.splitlines()] == ["first", "second"]


def test_asked_to_end_a_training_is_closed_at_once():
    before = signal.getsignal(signal.SIGTERM)
    closed, after = [], []

    def learning():
        try:
            yield Progress("first", 0, 3)
            signal.raise_signal(signal.SIGTERM)
            after.append("work that goes on")
        finally:
            signal.raise_signal(signal.SIGTERM)  # asked again while the best is written
            closed.append(True)

    with pytest.raises(KeyboardInterrupt):
        train_commands._run(learning(), as_json=True)
    assert closed == [True]
    assert after == []
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("softly", [True, False])
def test_a_process_that_follows_another_one_is_not_ended_by_a_signal(monkeypatch, capsys, softly):
    monkeypatch.setenv("LOCAL_RANK", "1")

    def learning():
        signal.raise_signal(signal.SIGINT)
        yield Progress("last", 0, 1)

    assert train_commands._run(learning(), as_json=True, softly=softly) == 0


def test_a_tilde_is_the_home_folder_in_every_form_of_an_option(image, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "me"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "me").mkdir()
    image.rename(tmp_path / "me" / image.name)
    words = ("segment", f"~/{image.name}", "--model", "tiny", "--device", "cpu")
    assert run(*words, "--output=~/a/mask.nii.gz", "--preview", "~/a/mask.png", "--stages-dir=~/s") == 0
    assert (tmp_path / "me" / "a" / "mask.nii.gz").exists()
    assert (tmp_path / "me" / "a" / "mask.png").exists()
    assert (tmp_path / "me" / "s").is_dir()
    assert run("phantom", "~/ct", "--spacing", "12", "12", "12") == 0
    assert run("phantom", "./~name", "--spacing", "12", "12", "12") == 0  # a name that only looks like it
    assert sorted(path.name for path in tmp_path.iterdir() if "~" in path.name) == ["~name"]
    monkeypatch.setenv("FMSEG_HOME", "~/place")
    from napari_fmseg.models.folders import user_models_folder

    assert user_models_folder() == tmp_path / "me" / "place" / "models"


def nan_labels(path, sign=1):
    data = np.full(SHAPE, np.nan, np.float32)
    data[4:9, 5:10, 5:10] = 1
    return write_volume(Volume(data, volume().geometry), path)


def test_score_export_and_lesions_say_what_was_repaired_while_reading(image, tmp_path, capsys):
    mask = nan_labels(tmp_path / "mask.nii.gz")
    zeros = read_labels(mask)
    truth = write_labels(LabelMap(zeros.data, zeros.geometry), tmp_path / "truth.nii.gz")
    assert run("score", mask, truth, "--json") == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["mean_dice"] == 1
    assert told.err.count("Warning: mask.nii.gz:") == 1
    assert "taken for background" in told.err
    for words in (("score", truth, mask, "--csv", tmp_path / "a.csv"), ("lesions", image, mask),
                  ("export", mask, "--output", tmp_path / "out", "--format", "nrrd")):  # fmt: skip
        assert run(*words) == 0
        assert capsys.readouterr().err.count("Warning: mask.nii.gz: ") == 1


def test_score_of_folders_names_what_has_no_partner(tmp_path, capsys):
    for name in ("mine/a_seg.nii.gz", "mine/b_seg.nii.gz", "true/a.nii.gz", "true/c.nii.gz"):
        nan_labels(tmp_path / name)
    words = ("score", tmp_path / "mine", tmp_path / "true", "--csv", tmp_path / "cases.csv")
    assert run(*words) == 0
    told = capsys.readouterr()
    assert "2 files have no counterpart" in told.err
    assert [name for name in ("b_seg.nii.gz", "c.nii.gz", "a.nii.gz\n") if f"/{name}" in told.err] == [
        "b_seg.nii.gz", "c.nii.gz",
    ]  # fmt: skip
    assert told.err.count("Warning: a_seg.nii.gz: ") == 1
    assert run(*words, "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["left_out"]) == 2
    (tmp_path / "mine" / "c_seg.nii.gz").symlink_to("/nowhere/c")
    assert run(*words) == 1
    assert "which is not there" in capsys.readouterr().err


def test_a_dead_link_in_a_folder_fails_and_the_others_are_segmented(image, tmp_path, capsys):
    scans = tmp_path / "scans"
    (scans / "lost").mkdir(parents=True)
    image.rename(scans / "case.nii.gz")
    (scans / "lost" / "ct.nii.gz").symlink_to("/nowhere/ct")
    words = ("segment", scans, "--model", "tiny", "--output", tmp_path / "out", "--device", "cpu")
    assert run(*words) == 1
    told = capsys.readouterr().err
    assert "1 of 2 volumes failed" in told
    assert "is a link to /nowhere/ct, which is not there" in told
    assert (tmp_path / "out" / "case_seg.nii.gz").exists()

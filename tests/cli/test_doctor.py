import builtins
import importlib.util
import subprocess
import sys

import pytest

from napari_fmseg.cli import doctor
from napari_fmseg.cli.doctor import Finding, examine

CARD = """
name = "{name}"
title = "Test"
pipeline = "phased"
weights = "{name}.safetensors"
sha256 = "{sha}"
[nets.consensus]
network = "snet"
[labels]
1 = "liver"
"""
SHA_OF_NOTHING = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@pytest.fixture
def models(tmp_path, monkeypatch):
    monkeypatch.setenv("FMSEG_HOME", str(tmp_path))
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


def found(name) -> list[Finding]:
    return [f for f in examine() if f.name == name]


def test_everything_is_looked_at_and_whatever_is_wrong_has_a_fix():
    findings = examine()
    names = {f.name for f in findings}
    assert {"python", "platform", "torch", "device", "threads", "processor", "memory", "disk", "isal", "cc3d",
            "precision", "pydicom", "highdicom", "napari", "Qt"} <= names  # fmt: skip
    assert all(f.state in ("ok", "warn", "bad") and f.text for f in findings)
    assert all(f.fix for f in findings if f.state != "ok")


def test_a_model_with_its_weights_is_well_and_one_that_was_altered_is_not(models):
    for name, sha in (("whole", SHA_OF_NOTHING), ("altered", "0" * 64)):
        (models / f"{name}.toml").write_text(CARD.format(name=name, sha=sha))
        (models / f"{name}.safetensors").write_bytes(b"")
    (models / "lost.toml").write_text(CARD.format(name="lost", sha=""))
    (models / "broken.toml").write_text("name = ")
    assert [f.state for f in found("model whole")] == ["ok"]
    assert [(f.state, "altered" in f.text) for f in found("model altered")] == [("bad", True)]
    assert [f.state for f in found("model lost")] == ["bad"]
    assert ["broken.toml" in f.text for f in found("models")] == [True]


def test_a_missing_package_is_told_with_what_brings_it(monkeypatch):
    there = importlib.util.find_spec
    gone = {"isal", "highdicom", "SimpleITK", "PyQt6", "PySide6", "PyQt5"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name in gone else there(name, *a))
    assert found("isal")[0].fix == "pip install isal"
    assert found("isal")[0].state == "bad"
    assert found("highdicom")[0].fix == "pip install 'napari-fmseg[dicom]'"
    assert found("SimpleITK")[0].state == "bad"
    assert found("Qt")[0].fix == "pip install 'napari-fmseg[all]'"


@pytest.mark.parametrize(
    ("error", "fix"),
    [(ImportError("no torch"), "pip install torch"), (OSError("libc10.so"), "--force-reinstall torch")],
)
def test_a_missing_or_broken_torch_is_told_and_the_rest_still_examined(monkeypatch, error, fix):
    real = builtins.__import__

    def without_torch(name, *args):
        if name == "torch":
            raise error
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", without_torch)
    findings = {f.name: f for f in examine()}
    assert findings["torch"].state == "bad"
    assert fix in findings["torch"].fix
    assert findings["disk"].state == "ok"


def test_too_few_threads_are_told_with_the_variable_that_limits_them(monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(doctor, "n_cores", lambda: 4)
    threads = found("threads")[0]
    assert (threads.state, "OMP_NUM_THREADS=1" in threads.text) == ("warn", True)


def test_a_torch_for_the_processor_on_a_machine_with_a_card_is_told(monkeypatch):
    torch = pytest.importorskip("torch")
    if torch.version.cuda:
        pytest.skip("this torch is built for CUDA")
    monkeypatch.setattr(doctor, "_has_nvidia", lambda: True)
    assert [(f.state, bool(f.fix)) for f in found("torch")] == [("warn", True)]


def test_examining_loads_neither_qt_nor_napari():
    code = (
        "import sys; from napari_fmseg.cli.doctor import examine; examine(); "
        "sys.exit(str({'qtpy', 'PyQt6', 'PySide6', 'napari', 'openvino'} & set(sys.modules) or ''))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""

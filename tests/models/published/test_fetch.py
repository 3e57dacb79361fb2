"""A published model is downloaded on request only, converted, and then listed and run as any other."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage

from napari_fmseg.cli.main import main
from napari_fmseg.core.errors import FmsegError, UnknownModel, WeightsMismatch
from napari_fmseg.core.events import drain
from napari_fmseg.core.resampling_torch import to_canonical
from napari_fmseg.core.volume import Geometry, Volume
from napari_fmseg.models.card import ModelCard
from napari_fmseg.models.published import fetch_published, find_published, list_published, not_downloaded
from napari_fmseg.models.published.registry import read_published
from napari_fmseg.models.registry import find_card, list_models
from napari_fmseg.models.weights import load_model
from napari_fmseg.pipelines import SegmentOptions, segment


def fetched(model: Any, **options: Any) -> ModelCard:
    work = fetch_published(model, **options)
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


def as_published(array: np.ndarray, kernels: list[np.ndarray], biases: list[np.ndarray], dilations: list[int]) -> Any:
    """Compute a MeshNet by scipy on an array in the publisher's own axes: (classes, a, b, c)."""
    x = array[None].astype(float)
    for kernel, bias, dilation in zip(kernels, biases, dilations, strict=True):
        size = (kernel.shape[0] - 1) * dilation + 1
        spread = np.zeros((size, size, size, *kernel.shape[3:]))
        spread[::dilation, ::dilation, ::dilation] = kernel
        out = [sum(ndimage.correlate(x[i], spread[..., i, o], mode="constant") for i in range(len(x))) + bias[o]
               for o in range(kernel.shape[4])]  # fmt: skip
        x = np.stack(out)
        if kernel.shape[0] > 1:
            x = np.where(x > 0, x, np.expm1(np.minimum(x, 0)))
    return x


def test_a_converted_meshnet_computes_what_its_publisher_does(
    host: Any, tiny_tfjs: Any, own_models: Path, addresses: list[str]
) -> None:
    kernels, biases = tiny_tfjs
    card = fetched(host.model("model.json", "model.bin"))
    assert card.nets["net"].kwargs["dilations"] == [1, 2, 1]
    # As FreeSurfer stores a head: the axes of the array run to the left, to inferior and to anterior.
    array = np.random.default_rng(0).normal(0, 1, (11, 12, 13)).astype(np.float32)
    to_lps = np.diag([1.0, 1.0, 1.0, 1.0])
    to_lps[:3, :3] = [[0, -1, 0], [0, 0, -1], [1, 0, 0]]  # rows z, y, x: of index (a, b, c)
    volume = Volume(array, Geometry(array.shape, to_lps))
    canonical, _ = to_canonical(volume)
    np.testing.assert_array_equal(canonical[0], np.flip(array.transpose(1, 2, 0), (0, 1)))
    net = load_model(card, device="cpu").nets["net"]
    with torch.inference_mode():
        found = net(torch.from_numpy(canonical.copy())[None]).numpy()[0]
    expected = as_published(array, kernels, biases, [1, 2, 1, 1])
    turned = np.flip(expected.transpose(0, 2, 3, 1), (1, 2))
    np.testing.assert_allclose(found, turned, atol=1e-4)
    assert set(addresses) == {"127.0.0.1"}


def test_a_downloaded_model_is_listed_with_its_licence_and_runs(host: Any, tiny_tfjs: Any, own_models: Path) -> None:
    card = fetched(host.model("model.json", "model.bin"))
    assert card.name in [one.name for one in list_models()]
    listed = find_card("tiny-mr")
    assert (listed.licence, listed.limits, listed.mean_dice) == ("MIT", "Good for nothing.", None)
    assert listed.sha256
    assert not list((own_models.parents[1] / "tmp").iterdir()), "nothing temporary stays"
    volume = Volume(
        np.random.default_rng(1).random((20, 18, 16), np.float32), Geometry.from_spacing((20, 18, 16), (1, 1, 1))
    )
    labels = drain(segment(volume, load_model(listed, device="cpu"), SegmentOptions(precision="float32")))
    assert labels.data.shape == (20, 18, 16)


def test_an_interrupted_download_installs_nothing(host: Any, tiny_tfjs: Any, own_models: Path) -> None:
    work = fetch_published(host.model("model.json", "model.bin"))
    next(work)
    work.close()
    assert not own_models.exists()
    assert not list((own_models.parents[1] / "tmp").iterdir())


@pytest.mark.parametrize("what", ["cut short", "another activation", "another kernel", "no json", "other classes"])
def test_files_that_are_no_meshnet_are_refused(what: str, host: Any, tiny_tfjs: Any, own_models: Path) -> None:
    changed: dict[str, Any] = {}
    if what == "cut short":
        host.files["model.bin"] = host.files["model.bin"][:-4]
    elif what == "another activation":
        host.files["model.json"] = host.files["model.json"].replace(b'"elu"', b'"relu"')
    elif what == "another kernel":
        host.files["model.json"] = host.files["model.json"].replace(
            b'"kernel_size": [1, 1, 1]', b'"kernel_size": [3, 1, 1]'
        )
    elif what == "no json":
        host.files["model.json"] = b"<html>not here</html>"
    else:
        changed = {"card": {**host.model("model.json").card, "labels": {"1": "one"}}}
    with pytest.raises(WeightsMismatch):
        fetched(host.model("model.json", "model.bin", **changed))
    assert not own_models.exists()


def test_a_published_model_of_nnunet_is_imported_under_its_entrys_name(
    host: Any, own_models: Path, nnunet_results: Any, tmp_path: Path
) -> None:
    nnunet_results(tmp_path / "results")
    with zipfile.ZipFile(tmp_path / "toy.zip", "w") as packed:
        for file in sorted((tmp_path / "results").rglob("*")):
            packed.write(file, file.relative_to(tmp_path / "results"))
    host.files["toy.zip"] = (tmp_path / "toy.zip").read_bytes()
    card = fetched(host.model("toy.zip", format="nnunet", name="toy-ct", modality="CT", axes="", card={}))
    assert (card.name, card.licence, card.limits) == ("toy-ct", "MIT", "Good for nothing.")
    assert card.labels == {1: "liver", 2: "kidneys"}
    assert load_model("toy-ct", device="cpu").nets


def test_another_model_of_that_name_stays_unless_it_is_to_be_replaced(
    host: Any, tiny_tfjs: Any, own_models: Path
) -> None:
    model = host.model("model.json", "model.bin")
    first = fetched(model)
    content = bytearray(host.files["model.bin"])
    content[3] ^= 1
    host.files["model.bin"] = bytes(content)
    other = host.model("model.json", "model.bin")
    with pytest.raises(FmsegError, match="There is another model 'tiny-mr' of yours"):
        fetched(other)
    assert find_card("tiny-mr").sha256 == first.sha256
    assert fetched(other, replace=True).sha256 != first.sha256


def test_every_shipped_entry_is_complete_and_is_no_shipped_model() -> None:
    entries = list_published()
    assert {"meshnet-brain-mr", "totalsegmentator-fast-ct"} <= {one.name for one in entries}
    shipped = {path.stem for folder in ("resources/models", "weights/research")
               for path in (Path(__file__).parents[3] / folder).glob("*.toml")}  # fmt: skip
    for one in entries:
        assert one.name not in shipped
        assert all(file.url.startswith("https://") for file in one.files)
        for word in (one.licence, one.citation, one.limits, f"{one.size / 1e6:.1f} MB", *one.hosts, "Nothing is sent"):
            assert word in one.terms()
        if one.format == "tfjs":
            card = one.as_card()
            assert card.n_classes > 2
            assert card.mean_dice is None or card.scored_on


def test_an_entry_without_a_hash_or_a_licence_is_refused(tmp_path: Path) -> None:
    shipped = Path(__file__).parents[3] / "resources" / "published" / "meshnet-brain-mr.toml"
    path, text = tmp_path / "entry.toml", shipped.read_text(encoding="utf-8")
    for old, new, message in (
        ('sha256 = "7039', 'sha256 = "X039', "no sha256"),
        ('licence = "MIT (the whole repository of brainchop)"', 'licence = ""', "does not state its licence"),
        ("https://raw", "http://raw", "not fetched over https"),
    ):
        assert old in text
        path.write_text(text.replace(old, new), encoding="utf-8")
        with pytest.raises(UnknownModel, match=message):
            read_published(path)


def test_listing_importing_and_running_send_nothing(addresses: list[str], own_models: Path, capsys: Any) -> None:
    assert [one.name for one in not_downloaded()] == [one.name for one in list_published()]
    assert main(["models"]) == 0
    out = capsys.readouterr().out
    assert "To download: meshnet-brain-mr" in out
    assert main(["models", "--json"]) == 0
    assert addresses == []


def test_listing_published_models_imports_neither_torch_nor_pooch(own_models: Path) -> None:
    code = ("import sys; from napari_fmseg.models.published import not_downloaded; not_downloaded(); "
            "print([name for name in ('torch', 'pooch', 'requests') if name in sys.modules])")  # fmt: skip
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_the_command_asks_first_and_downloads_once_the_licence_is_accepted(
    host: Any, tiny_tfjs: Any, own_models: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch, addresses: list[str]
) -> None:
    model = host.model("model.json", "model.bin")
    monkeypatch.setattr("napari_fmseg.models.published.registry.list_published", lambda: (model,))
    assert main(["models", "get", "tiny-mr"]) == 1, "nobody is there to accept"
    said = capsys.readouterr().err
    assert "Licence: MIT" in said
    assert "add --accept-licence" in said
    assert host.asked == []
    assert main(["models", "get", "tiny-mr", "--accept-licence"]) == 0
    assert "tiny-mr: inside, outside" in capsys.readouterr().out
    assert host.asked == ["model.json", "model.bin"]
    assert set(addresses) == {"127.0.0.1"}
    assert not_downloaded() == ()
    assert main(["models"]) == 0
    assert "tiny-mr" in capsys.readouterr().out
    assert main(["models", "get", "tiny"]) == 1
    assert "There is no published model 'tiny'" in capsys.readouterr().err


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("\n", 1), ("no\n", 1)])
def test_a_person_is_asked_and_only_yes_downloads(
    answer: str, code: int, host: Any, tiny_tfjs: Any, own_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = host.model("model.json", "model.bin")
    monkeypatch.setattr("napari_fmseg.models.published.registry.list_published", lambda: (model,))
    monkeypatch.setattr("napari_fmseg.cli.console._somebody_is_there", lambda: True)
    monkeypatch.setattr("sys.stdin", __import__("io").StringIO(answer))
    assert main(["models", "get", "tiny-mr"]) == code
    assert bool(host.asked) is (code == 0)


def test_the_name_of_an_entry_is_found() -> None:
    assert find_published("meshnet-brain-mr").format == "tfjs"
    with pytest.raises(UnknownModel, match=r"There is no published model 'nonet'.*meshnet-brain-mr"):
        find_published("nonet")

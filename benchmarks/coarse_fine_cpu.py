"""A coarse-to-fine model on a large CT: seconds and memory of every part, against whole logits in float32.

    python benchmarks/coarse_fine_cpu.py [--shape 200 512 512] [--classes 7] [--model CARD] [--device cpu]
        [--forms engine plain] [--max-memory-gb 0] [--half] [--out benchmarks/results]

Without a model the published networks (BaseUNet at 160, EfficientSegNet at 192) with drawn weights: they find no
organs, but cost what trained ones cost. Every form runs in a process of its own, whose peak memory the operating
system tells; the volume is a phantom, and is read from a file and its labels are written to one. On a graphics card
the peak is that of torch's allocator, and the times end when the card is done. With --device cuda --half the engine
computes in 16 bit, as the published figures do (network alone 0.46 s, file to mask 9.8 s, 2269 MB).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from napari_fmseg.core.events import StageResult, Warned
from napari_fmseg.core.processes import peak_bytes
from napari_fmseg.core.resampling_torch import bounding_box, canonical_view, resize, to_canonical, to_tensor
from napari_fmseg.core.volume import Geometry, LabelMap, Volume
from napari_fmseg.datasets.phantom import phantom_ct
from napari_fmseg.evaluation.machine import machine_facts
from napari_fmseg.io import read_volume, write_labels, write_volume
from napari_fmseg.models.card import Intensity, ModelCard, NetSpec
from napari_fmseg.models.settings import CoarseFineSettings
from napari_fmseg.models.weights import Model, load_model, save_model
from napari_fmseg.nets import build
from napari_fmseg.nets.runtime.device import pick_device
from napari_fmseg.pipelines import SegmentOptions, segment
from napari_fmseg.pipelines.coarse_fine import box_around, network_input
from napari_fmseg.pipelines.postprocess import keep_largest_components

FIELD_MM = (400.0, 400.0, 400.0)


def large_ct(shape: tuple[int, int, int]) -> Volume:
    """Give a phantom drawn on a coarser grid, its voxels repeated, with noise: drawing them all takes minutes."""
    times = [max(1, n // 100) for n in shape]
    small = [-(-n // k) for n, k in zip(shape, times, strict=True)]
    spacing = [mm / n for mm, n in zip(FIELD_MM, shape, strict=True)]
    z, y, x = (s * k for s, k in zip(spacing, times, strict=True))
    data = phantom_ct(1, spacing=(z, y, x), shape=(small[0], small[1], small[2]))[0].data
    out = np.empty(shape, np.int16)
    rng = np.random.default_rng(0)
    noise = rng.integers(-20, 21, (64, *shape[1:]), np.int16)
    for i in range(shape[0]):
        plane = data[i // times[0]].repeat(times[1], 0).repeat(times[2], 1)
        out[i] = plane[: shape[1], : shape[2]] + noise[i % len(noise)]
    return Volume(out, Geometry.from_spacing(shape, (spacing[0], spacing[1], spacing[2])))


def drawn_model(n_classes: int, folder: Path) -> Path:
    """Write a model of the published networks with drawn weights; gives its card."""
    kwargs = {"n_classes": n_classes + 1}
    specs = {"coarse": NetSpec("baseunet", kwargs), "fine": NetSpec("efficientsegnet", kwargs)}
    torch.manual_seed(0)
    nets = {name: build(spec.network, **spec.kwargs) for name, spec in specs.items()}
    card = ModelCard(
        name="drawn", title="Drawn weights", pipeline="coarse_fine", nets=specs, modality="CT",
        labels={i: f"class {i}" for i in range(1, n_classes + 1)}, intensity=Intensity("window_zscore", -325, 325),
        settings={"coarse_max_components": [1], "fine_max_components": [1]},
    )  # fmt: skip
    save_model(card, nets, folder)
    return folder / "drawn.toml"


def engine(path: Path, model: Model, asked: argparse.Namespace, result: Path) -> dict[str, Any]:
    """Run what users run, from file to file."""
    seconds: dict[str, float] = {}
    said: list[str] = []
    start = time.perf_counter()
    volume = read_volume(path)
    seconds["reading"] = time.perf_counter() - start
    options = SegmentOptions(
        device=asked.device, precision="float16" if asked.half else "auto", max_memory_gb=asked.max_memory_gb
    )
    nets = {name: Timed(net) for name, net in model.nets.items()} if asked.device != "cpu" else model.nets
    labels: Any = None
    with NetworkSeconds() as network:
        for event in segment(volume, dataclasses.replace(model, nets=nets), options):
            if isinstance(event, StageResult):
                seconds[event.stage] = event.seconds
                labels = event.output
            elif isinstance(event, Warned):
                said.append(event.text)
    start = time.perf_counter()
    write_labels(labels, result, source=volume)
    seconds["writing"] = time.perf_counter() - start
    np.save(result.with_suffix(".npy"), labels.data)
    between = sum(seconds[part] for part in ("coarse", "fine", "labels"))
    return {
        "seconds": seconds,
        "networks_seconds": network.seconds,
        "share_before_and_after_networks": 1 - network.seconds / between,
        "said": said,
    }


class Timed(torch.nn.Module):
    """A network whose end is waited for, so that its time is its own."""

    def __init__(self, net: torch.nn.Module) -> None:
        super().__init__()
        self.net, self.activation = net, getattr(net, "activation", "softmax")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run the network to its end."""
        out: torch.Tensor = self.net(x)
        torch.cuda.synchronize()
        return out


class NetworkSeconds:
    """Adds up the time inside the networks while it is entered."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __enter__(self) -> NetworkSeconds:
        from napari_fmseg.pipelines.executor import InferenceRunner

        self._engine, self._attempt = InferenceRunner, InferenceRunner.attempt

        def attempt(own: Any, net: Any, *inputs: Any) -> Any:
            start = time.perf_counter()
            out = self._attempt(own, net, *inputs)
            self.seconds += time.perf_counter() - start
            return out

        InferenceRunner.attempt = attempt  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        self._engine.attempt = self._attempt  # type: ignore[method-assign]


@torch.inference_mode()
def plain(path: Path, model: Model, asked: argparse.Namespace, result: Path) -> dict[str, Any]:
    """Do the same straight on: the volume as floats, the networks layer by layer, whole logits and probabilities."""
    settings, intensity = CoarseFineSettings.of(model.card.settings), model.card.intensity
    start = time.perf_counter()
    volume = read_volume(path)
    data, geometry = to_canonical(volume)
    image = to_tensor(data, model.device).float()

    overlapping = getattr(model.nets["fine"], "activation", "softmax") == "sigmoid"

    def chosen(logits: torch.Tensor) -> Any:
        if not overlapping:
            return logits.softmax(0).argmax(0).to(torch.uint8).cpu().numpy()
        best, which = logits.sigmoid().max(0)
        return ((which + 1) * (best >= settings.threshold)).to(torch.uint8).cpu().numpy()

    def kept(logits: torch.Tensor, grid: Any, parts: tuple[int, ...], least: float) -> tuple[LabelMap, torch.Tensor]:
        seen = LabelMap(chosen(logits), grid)
        left = keep_largest_components(seen, parts, least)
        gone = torch.from_numpy((seen.data != 0) & (left.data == 0)).to(logits.device)
        if overlapping:
            return left, torch.where(gone, torch.minimum(logits, -1e-3 - logits), logits)
        logits[0] = torch.where(gone, logits.amax(0) + 1, logits[0])
        return left, logits

    z, y, x = geometry.shape
    box = slice(0, z), slice(0, y), slice(0, x)
    if settings.crop_above is not None:
        inside = bounding_box((image > settings.crop_above).any(0))
        box = box if inside is None else inside
    coarse = resize(image[(slice(None), *box)], settings.coarse_size)
    logits = model.nets["coarse"](network_input(coarse, intensity)[None])[0]
    grid = geometry.crop(box).resize(settings.coarse_size)
    found, _ = kept(logits, grid, settings.coarse_max_components, settings.coarse_min_ml)
    box = box_around(found.data, geometry, settings.margin_mm, box)
    logits = model.nets["fine"](network_input(resize(image[(slice(None), *box)], settings.fine_size), intensity)[None])
    grid = geometry.crop(box).resize(settings.fine_size)
    _, logits = kept(logits[0], grid, settings.fine_max_components, settings.fine_min_ml)
    whole = torch.full((len(logits), *geometry.shape), -30.0, device=logits.device)
    if not overlapping:
        whole[0] = 30.0  # the background
    size = [s.stop - s.start for s in box]
    whole[(slice(None), *box)] = F.interpolate(logits[None], size, mode="trilinear", align_corners=False)[0]
    array = np.zeros(volume.geometry.shape, np.uint8)
    canonical_view(array, volume.geometry)[...] = chosen(whole)
    write_labels(LabelMap(array, volume.geometry), result, source=volume)
    np.save(result.with_suffix(".npy"), array)
    return {"seconds": {"file to file": time.perf_counter() - start}}


def child(asked: argparse.Namespace) -> None:
    """Run one form and tell what it took."""
    model = load_model(asked.model, device=asked.device)
    run = {"engine": engine, "plain": plain}[asked.child]
    start, before = time.perf_counter(), time.process_time()
    told = run(asked.volume, model, asked, asked.result)
    told["file_to_file_seconds"] = time.perf_counter() - start
    told["processor_seconds"] = time.process_time() - before
    told["peak_mb"] = peak_bytes() / 1e6
    if model.device.type == "cuda":
        told["gpu_peak_mb"] = torch.cuda.max_memory_reserved(model.device) / 1e6
    sys.stdout.write(json.dumps(told) + "\n")


def main() -> None:
    """Make the volume and the model, run the forms, compare and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=3, default=(200, 512, 512))
    parser.add_argument("--classes", type=int, default=7)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--half", action="store_true")
    parser.add_argument("--forms", nargs="+", default=("engine", "plain"))
    parser.add_argument("--max-memory-gb", type=float, default=0.0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--name", default="")
    for name in ("volume", "result"):
        parser.add_argument(f"--{name}", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        child(asked)
        return
    with tempfile.TemporaryDirectory(prefix="fmseg-coarse-fine-") as place:
        folder = Path(place)
        model = asked.model or drawn_model(asked.classes, folder)
        z, y, x = asked.shape
        volume = write_volume(large_ct((z, y, x)), folder / "ct.nii.gz")
        told: dict[str, Any] = {
            "shape": list(asked.shape), "classes": asked.classes, "max_memory_gb": asked.max_memory_gb,
            "environment": machine_facts(pick_device(asked.device)),
        }  # fmt: skip
        for form in asked.forms:
            words = [sys.executable, __file__, "--child", form, "--volume", str(volume), "--model", str(model),
                     "--result", str(folder / f"{form}.nii.gz"), "--device", asked.device,
                     "--max-memory-gb", str(asked.max_memory_gb), *(["--half"] if asked.half else [])]  # fmt: skip
            done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
            told[form] = json.loads(done.stdout.splitlines()[-1])
            keep(told, asked)
        found = [np.load(folder / f"{form}.nii.npy", mmap_mode="r") for form in asked.forms]
        if len(found) == 2:
            told["labels_equal"] = float((found[0] == found[1]).mean())
            told["labelled_share"] = float((np.asarray(found[0]) != 0).mean())
            told["times_less_memory"] = told["plain"]["peak_mb"] / told["engine"]["peak_mb"]
            keep(told, asked)


def keep(told: dict[str, Any], asked: argparse.Namespace) -> None:
    """Write what is known so far."""
    asked.out.mkdir(parents=True, exist_ok=True)
    name = asked.name or f"coarse_fine_{asked.device.partition(':')[0]}"
    text = json.dumps(told, indent=2)
    (asked.out / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()

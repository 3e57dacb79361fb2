"""How long every part of a segmentation takes and how much memory it needs, and what the engine gains.

Reading and writing are measured apart from the stages. The engine is compared with the plain form of a network
(eager, float32) in pairs: the plain one runs in a process of its own, because the engine's settings of the memory
allocator hold for a whole process.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from napari_fmseg.core.allocator import own_process
from napari_fmseg.core.errors import FmsegError
from napari_fmseg.core.events import Progress, StageResult
from napari_fmseg.core.memory import MemoryWatch
from napari_fmseg.core.processes import ChildProcess, python_module
from napari_fmseg.core.volume import LabelMap, Volume
from napari_fmseg.evaluation.machine import machine_facts
from napari_fmseg.io import read_volume, suffix_of, write_labels, write_volume
from napari_fmseg.io.compression import open_inflated
from napari_fmseg.models.provenance import precision_of
from napari_fmseg.pipelines import SegmentOptions, segment

if TYPE_CHECKING:
    import torch
    from torch import nn

    from napari_fmseg.models.weights import Model

__all__ = ["Benchmark", "Comparison", "StepTiming", "benchmark", "compare_with_plain", "snet_example"]


@dataclass(frozen=True)
class StepTiming:
    """One part of a run: reading, a stage, writing.

    Attributes
    ----------
    seconds, fastest
        Median and least time over the repeats.
    peak_mb
        Most memory that the process held while it ran, in MB; the largest of the repeats.
    gpu_mb
        Most memory that torch held on the GPU; 0 without one.
    """

    seconds: float
    fastest: float
    peak_mb: float
    gpu_mb: float = 0.0


@dataclass(frozen=True)
class Benchmark:
    """What `benchmark` found.

    Attributes
    ----------
    model, precision
        What ran.
    shape, spacing_mm
        The volume's grid (z, y, x).
    repeats
        How many runs the medians are of.
    parts
        In the order in which they run.
    total_seconds
        Median time from file to file.
    inflate_seconds
        For a compressed file: inflating it alone, by the standard library and as we do.
    environment
        The machine; see `napari_fmseg.evaluation.machine.machine_facts`.
    """

    model: str
    precision: str
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    repeats: int
    parts: Mapping[str, StepTiming]
    total_seconds: float
    inflate_seconds: Mapping[str, float] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """The engine against the plain form of one network, run in turns.

    Attributes
    ----------
    network, shape
        What ran, on how many voxels (z, y, x).
    plain_seconds, engine_seconds
        Medians: eager float32 as the specification writes it, and as users run it.
    times_faster
        Median of the ratios of the pairs.
    times_less_work
        Ratio of the least times that the processor itself spent (all threads): what other programs disturb least. With
        several threads it counts their waiting for each other too.
    equal
        Part of the voxels with the same label, 0 to 1.
    repeats
        Pairs.
    """

    network: str
    shape: tuple[int, int, int]
    plain_seconds: float
    engine_seconds: float
    times_faster: float
    times_less_work: float
    equal: float
    repeats: int


def benchmark(
    image: Volume | Path,
    model: Model,
    options: SegmentOptions | None = None,
    *,
    repeats: int = 5,
    warmups: int = 1,
) -> Iterator[Progress | Benchmark]:
    """Segment one volume again and again, from file to file, and measure every part.

    Parameters
    ----------
    image
        A file, or a volume, which is first written to a temporary .nii.gz.
    model, options
        See `napari_fmseg.pipelines.segment`.
    repeats, warmups
        Runs that count, after some that do not.

    Yields
    ------
    Progress
        After every run.
    Benchmark
        At last.

    Raises
    ------
    FmsegError
        If `repeats` is less than 1, or anything that reading, segmenting and writing raise.
    """
    if repeats < 1 or warmups < 0:
        raise FmsegError(
            f"A benchmark of {repeats} runs after {warmups} others measures nothing. Use at least one run."
        )
    options = options or SegmentOptions()
    with tempfile.TemporaryDirectory(prefix="fmseg-bench-") as folder:
        path = image if isinstance(image, Path) else write_volume(image, Path(folder) / "volume.nii.gz")
        runs: list[dict[str, StepTiming]] = []
        walls: list[float] = []
        inflate: list[dict[str, float]] = []
        for n in range(warmups + repeats):
            start = time.perf_counter()
            parts, volume = _run(path, model, options, Path(folder) / "labels.nii.gz")
            if n >= warmups:
                walls.append(time.perf_counter() - start)
                runs.append(parts)
                inflate.append(_inflate(path))
            yield Progress("benchmark", n + 1, warmups + repeats)
    yield Benchmark(
        model=model.card.name,
        precision=precision_of(model, options.precision),
        shape=volume.geometry.shape,
        spacing_mm=volume.geometry.spacing,
        repeats=repeats,
        parts={name: _together([run[name] for run in runs]) for name in runs[0]},
        total_seconds=statistics.median(walls),
        inflate_seconds={name: statistics.median(run[name] for run in inflate) for name in inflate[0]},
        environment=machine_facts(model.device),
    )


def _run(path: Path, model: Model, options: SegmentOptions, result: Path) -> tuple[dict[str, StepTiming], Volume]:
    """Segment one file into another; give every part with its time and peak memory, and the volume."""
    parts: dict[str, StepTiming] = {}
    with MemoryWatch(model.device) as memory:

        def note(name: str, seconds: float) -> None:
            peak, gpu = memory.peak_mb()
            parts[name] = StepTiming(seconds, seconds, peak, gpu)

        start = time.perf_counter()
        volume = read_volume(path)
        note("reading", time.perf_counter() - start)
        labels: LabelMap | None = None
        for event in segment(volume, model, options):
            if isinstance(event, StageResult):
                note(event.stage, event.seconds)
                labels = event.output if isinstance(event.output, LabelMap) else labels
        if labels is None:
            raise FmsegError(f"{model.card.name} ended without labels. Try another `until`.")
        start = time.perf_counter()
        write_labels(labels, result, source=volume)
        note("writing", time.perf_counter() - start)
    return parts, volume


def _together(parts: list[StepTiming]) -> StepTiming:
    seconds = [part.seconds for part in parts]
    return StepTiming(
        statistics.median(seconds),
        min(seconds),
        max(part.peak_mb for part in parts),
        max(part.gpu_mb for part in parts),
    )


def _inflate(path: Path) -> dict[str, float]:
    """Return seconds to inflate a .nii.gz with the standard library and with ours; {} for other files."""
    if suffix_of(path) != ".nii.gz":
        return {}
    openers: dict[str, Callable[[], Any]] = {
        "standard library": lambda: gzip.open(path, "rb"),  # noqa: SIM115 - closed below
        "ours": lambda: open_inflated(path),
    }
    seconds = {}
    for name, opened in openers.items():
        start = time.perf_counter()
        with opened() as stream:
            while stream.read(1 << 22):
                pass
        seconds[name] = time.perf_counter() - start
    return seconds


# --- the engine against the plain form --------------------------------------------------------------------------


def snet_example(size: int = 128, seed: int = 0) -> tuple[str, dict[str, Any], nn.Module, torch.Tensor]:
    """Make the published SNet (32 channels, two classes) with drawn weights, and a smooth image for it.

    Returns
    -------
    tuple
        Name and arguments in the registry, the network, and the image (1, 1, size, size, size) in 0..1.
    """
    import torch
    import torch.nn.functional as F

    from napari_fmseg.nets import build

    kwargs: dict[str, Any] = {"in_channels": 1, "n_classes": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = build("snet", **kwargs).eval()
        coarse = torch.rand(1, 1, *[max(2, size // 8)] * 3)
    return "snet", kwargs, net, F.interpolate(coarse, [size] * 3, mode="trilinear")


def compare_with_plain(
    network: str,
    kwargs: Mapping[str, Any],
    net: nn.Module,
    image: torch.Tensor,
    *,
    device: str = "cpu",
    precision: str = "auto",
    repeats: int = 9,
) -> Iterator[Progress | Comparison]:
    """Run a network by the engine and in its plain form, in turns.

    Parameters
    ----------
    network, kwargs
        How the plain form is built; see `napari_fmseg.nets.build`.
    net
        The network with its weights, in evaluation mode.
    image
        (1, c, z, y, x) float32.
    device, precision
        Of the engine; the plain form runs in float32 on the same device.
    repeats
        Pairs that count, after one that does not.

    Yields
    ------
    Progress
        After every pair.
    Comparison
        At last.

    Raises
    ------
    FmsegError
        If `repeats` is less than 1 or the plain form fails.
    """
    import torch

    from napari_fmseg.nets.runtime.prepare import prepare

    if repeats < 1:
        raise FmsegError(f"{repeats} pairs measure nothing. Use at least one.")
    place = torch.device(device)
    engine, x = prepare(net, device=place, precision=precision), image.to(place)
    runs: list[_Times] = []
    plain_runs: list[_Times] = []
    with _PlainForm(network, kwargs, net, image, place) as plain:
        for n in range(1 + repeats):
            ours, labels = _time_call(lambda: engine(x), place)
            theirs = plain.run()
            if n:
                runs.append(ours)
                plain_runs.append(theirs)
            yield Progress("pairs", n + 1, 1 + repeats)
        equal = float((labels == plain.labels()).mean())
    z, y, x_size = image.shape[2:]
    yield Comparison(
        network=network,
        shape=(z, y, x_size),
        plain_seconds=statistics.median(t.wall for t in plain_runs),
        engine_seconds=statistics.median(t.wall for t in runs),
        times_faster=statistics.median(b.wall / a.wall for a, b in zip(runs, plain_runs, strict=True)),
        times_less_work=min(t.processor for t in plain_runs) / min(t.processor for t in runs),
        equal=equal,
        repeats=repeats,
    )


class _Times(NamedTuple):
    """Seconds on the wall, and of this process's threads on the processor."""

    wall: float
    processor: float


def _time_call(call: Any, device: torch.device) -> tuple[_Times, Any]:
    """Return times of a call to the end of the device's work, and its labels (z, y, x)."""
    import torch

    with torch.inference_mode():
        start = _Times(time.perf_counter(), time.process_time())
        out = call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times = _Times(time.perf_counter() - start.wall, time.process_time() - start.processor)
        return times, out.argmax(1)[0].to(torch.uint8).cpu().numpy()


class _PlainForm:
    """A process that runs the network as the specification writes it, on request."""

    def __init__(
        self, network: str, kwargs: Mapping[str, Any], net: nn.Module, image: torch.Tensor, device: torch.device
    ) -> None:
        from safetensors.torch import save_file

        self._place = tempfile.TemporaryDirectory(prefix="fmseg-plain-")
        self._folder = Path(self._place.name)
        state = {f"net.{k}": v.detach().cpu().contiguous() for k, v in net.state_dict().items()}
        save_file({**state, "image": image.contiguous()}, self._folder / "input.safetensors")
        facts = {"network": network, "kwargs": dict(kwargs), "device": str(device)}
        (self._folder / "network.json").write_text(json.dumps(facts), encoding="utf-8")

    def __enter__(self) -> _PlainForm:
        command = python_module("napari_fmseg.evaluation.benchmark", str(self._folder))
        self._process = ChildProcess(command, "plain form of the network", keep_errors=False)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.close()
        self._place.cleanup()

    def run(self) -> _Times:
        """Run it once."""
        wall, processor = self._ask("run").split()
        return _Times(float(wall), float(processor))

    def labels(self) -> Any:
        """Return labels (z, y, x) of the last run."""
        return np.load(self._ask("labels"))

    def _ask(self, word: str) -> str:
        with contextlib.suppress(BrokenPipeError):  # it has ended; the empty answer shows it
            self._process.stdin.write(f"{word}\n".encode())
            self._process.stdin.flush()
        answer: str = self._process.stdout.readline().decode().strip()
        if not answer:
            raise FmsegError("The plain form of the network ended early. Its messages stand above; is there memory?")
        return answer


def _serve(folder: Path) -> None:
    """Be the plain form: answer every line of stdin with one line."""
    import torch
    from safetensors.torch import load_file

    from napari_fmseg.nets import build

    own_process()
    facts = json.loads((folder / "network.json").read_text(encoding="utf-8"))
    device = torch.device(facts["device"])
    tensors = load_file(folder / "input.safetensors")
    image = tensors.pop("image").to(device)
    net = build(facts["network"], **facts["kwargs"]).eval().to(device)
    net.load_state_dict({k.removeprefix("net."): v for k, v in tensors.items()})
    labels = np.zeros((1, 1, 1), np.uint8)
    for line in sys.stdin:
        if line.strip() == "run":
            times, labels = _time_call(lambda: net(image), device)
            answer = f"{times.wall!r} {times.processor!r}"
        else:
            np.save(folder / "labels.npy", labels)
            answer = str(folder / "labels.npy")
        sys.stdout.write(answer + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))

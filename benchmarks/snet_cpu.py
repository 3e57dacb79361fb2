"""SNet at 128 x 128 x 128 on the CPU: the engine against the plain form of the published network, in turns.

    python benchmarks/snet_cpu.py [--pairs 15] [--threads N] [--size 128] [--out benchmarks/results]

Every form runs in a process of its own, since the engine's settings of the memory allocator hold for a whole
process. The forms take turns, so that a busy machine slows all of them; the figure to read is the median
of the ratios of neighbours. Processor times of one thread are written too: they hardly depend on neighbours.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from napari_fmseg.core.processes import peak_bytes
from napari_fmseg.evaluation.machine import machine_facts

FORMS = {
    "plain": "the published network, layer by layer in float32, with its four maps",
    "plain, finest map": "the same, only the map that is used",
    "plain, pages kept": "the same, with the allocator told to keep its pages",
    "engine": "what segment() calls, precision auto",
}


def draw(key: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Give weights that keep the variance of the signal, drawn by their name."""
    values = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode()))).standard_normal(shape)
    return torch.from_numpy(values.astype(np.float32)) * (float(np.prod(shape[1:])) ** -0.5 if len(shape) > 1 else 0.05)


def image(size: int) -> torch.Tensor:
    """Return a smooth volume with some noise, 0..1."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 1, *[max(2, size // 8)] * 3, generator=generator)
    smooth = F.interpolate(coarse, [size] * 3, mode="trilinear")
    return (smooth + 0.05 * torch.randn(smooth.shape, generator=generator)).clamp(0, 1)


def plain(state: dict[str, torch.Tensor], x: torch.Tensor, n_heads: int) -> list[torch.Tensor]:
    """Run the published forward pass as its specification writes it."""
    levels = [x]
    for i in range(5):
        y = F.conv3d(levels[-1], state[f"encoders.{i}.weight"], state[f"encoders.{i}.bias"], padding=1)
        levels.append(F.relu(F.max_pool3d(y, 2, 2)))
    d = F.conv3d(levels[5], state["con.weight"], state["con.bias"], padding=1)
    decoded = []
    for i in range(5):
        skip = levels[5 - i]
        u = F.interpolate(d, skip.shape[2:], mode="trilinear", align_corners=True)
        d = F.relu(F.conv3d(skip + u, state[f"decoders.{i}.weight"], state[f"decoders.{i}.bias"], padding=1))
        decoded.append(d)
    maps = []
    for i in range(n_heads):
        p = F.conv3d(decoded[4 - i], state[f"maps.{i}.0.weight"], state[f"maps.{i}.0.bias"]).softmax(1)
        maps.append(F.interpolate(p, x.shape[2:], mode="trilinear", align_corners=True))
    return maps


def serve(form: str, size: int, folder: str) -> None:
    """Be one form: run once per line of stdin, answer with seconds, processor seconds and peak memory."""
    from napari_fmseg.core.allocator import keep_freed_memory, own_process
    from napari_fmseg.nets import build
    from napari_fmseg.nets.runtime.device import pick_precision
    from napari_fmseg.nets.runtime.prepare import prepare

    net = build("snet").eval()
    net.load_state_dict({key: draw(key, tuple(value.shape)) for key, value in net.state_dict().items()})
    state, x = net.state_dict(), image(size)
    if form == "engine":
        engine = prepare(net, device="cpu")
        print(json.dumps(pick_precision(torch.device("cpu"))), flush=True)

        def run() -> torch.Tensor:
            return engine(x)
    else:
        print(json.dumps("float32"), flush=True)
        if form == "plain, pages kept":
            own_process()
            keep_freed_memory()

        def run() -> torch.Tensor:
            return plain(state, x, 4 if form == "plain" else 1)[0]

    for _ in sys.stdin:
        with torch.inference_mode():
            wall, cpu = time.perf_counter(), time.process_time()
            out = run()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        np.save(Path(folder) / f"{list(FORMS).index(form)}.npy", out.argmax(1).to(torch.uint8).numpy())
        print(json.dumps([wall, cpu, peak_bytes()]), flush=True)


class Form:
    """One form in a process of its own."""

    def __init__(self, name: str, size: int, folder: str, threads: int) -> None:
        command = [sys.executable, __file__, "--serve", name, "--size", str(size), "--folder", folder]
        root = str(Path(__file__).resolve().parents[1])
        env = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": root}
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
        self.precision = json.loads(self.process.stdout.readline())
        self.wall: list[float] = []
        self.cpu: list[float] = []
        self.peak = 0

    def run(self, count: bool) -> None:
        """Run once; the first run of a process warms it up."""
        self.process.stdin.write("run\n")
        self.process.stdin.flush()
        wall, cpu, self.peak = json.loads(self.process.stdout.readline())
        if count:
            self.wall.append(wall)
            self.cpu.append(cpu)

    def end(self) -> None:
        """Close its input, whereupon it ends."""
        self.process.communicate()


def measure(size: int, pairs: int, threads: int) -> dict[str, object]:
    """Run all forms in turns."""
    with tempfile.TemporaryDirectory() as folder:
        forms = {name: Form(name, size, folder, threads) for name in FORMS}
        for turn in range(2 + pairs):
            for form in forms.values():
                form.run(turn > 1)
        for form in forms.values():
            form.end()
        labels = [np.load(Path(folder) / f"{i}.npy") for i in range(len(FORMS))]
    base = forms["plain"]
    rows = {}
    for i, (name, form) in enumerate(forms.items()):
        rows[name] = {
            "what": FORMS[name],
            "precision": form.precision,
            "seconds_median": round(statistics.median(form.wall), 4),
            "times_faster_median_of_pairs": round(
                statistics.median(b / a for a, b in zip(form.wall, base.wall, strict=True)), 2
            ),
            "processor_seconds_min": round(min(form.cpu), 4),
            "times_less_processor_time": round(min(base.cpu) / min(form.cpu), 2),
            "peak_memory_mib": round(form.peak / 2**20),
            "labels_equal": float((labels[i] == labels[0]).mean()),
        }
    return {"threads": threads, "pairs": pairs, "foreground_share": round(float(labels[0].mean()), 3), "forms": rows}


def main() -> None:
    """Measure with all threads and with one, print a table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.size, options.folder)
        return
    result = {
        "what": f"SNet (32 channels, 2 classes) at {options.size}^3",
        "machine": machine_facts(),
        "runs": [measure(options.size, options.pairs, n) for n in dict.fromkeys([options.threads, 1])],
    }
    for run in result["runs"]:
        print(f"\n{run['threads']} thread(s), median of {run['pairs']} turns")
        for name, row in run["forms"].items():
            print(
                f"{name:20} {row['seconds_median'] * 1000:6.0f} ms  {row['times_faster_median_of_pairs']:5.2f}x  "
                f"processor {row['processor_seconds_min'] * 1000:6.0f} ms  {row['times_less_processor_time']:5.2f}x  "
                f"{row['peak_memory_mib']:5d} MiB  {100 * row['labels_equal']:.3f} % equal  {row['precision']}"
            )
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"snet_cpu_{options.size}.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

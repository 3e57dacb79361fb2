"""A volume in overlapping windows: ours beside MONAI's `sliding_window_inference`, with the same network.

    python -m benchmarks windows [--networks unet3d ma3dseg] [--window 96] [--rounds 3] [--threads 1]

The volume is a CT phantom in its own air, 2 mm wide voxels. Both blend overlapping windows (half of each) with the same
Gaussian. *MONAI* calls the network as it was published; *ours, plain network* calls the same module, so that the
windows alone are compared; *ours* is what users run, the engine in float32. Each form runs in a process of its own and
they take turns. Weights are those of a start, and labels are compared with those of MONAI.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

import measuring
import numpy as np
import torch
from networks import ENTRIES
from torch import Tensor

from napari_fmseg.core.resampling_torch import to_tensor
from napari_fmseg.datasets.phantom import phantom_ct
from napari_fmseg.nets.runtime.prepare import prepare
from napari_fmseg.nets.traits import class_probabilities
from napari_fmseg.pipelines.sliding_window import predict_windows

FORMS = ("MONAI", "ours, plain network", "ours")
OVERLAP = 0.5


def image_of(spacing_mm: float) -> Tensor:
    """Return a phantom (1, z, y, x) in 0..1, its air 0."""
    volume, _ = phantom_ct(1, spacing=(spacing_mm,) * 3)
    return to_tensor(volume.channels).float().clamp_(-150, 250).add_(150).div_(400)


def finish(run: Generator[Any, None, Tensor]) -> Tensor:
    """Run to the end and give what is returned there."""
    while True:
        try:
            next(run)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]


def serve(name: str, form: str, side: int, spacing_mm: float) -> None:
    """Be one form."""
    net, image, window = ENTRIES[name].build(side), image_of(spacing_mm), (side,) * 3
    call: Any = net
    if form == "ours":
        measuring.be_like_the_command()
        call = prepare(net, device=torch.device("cpu"), precision="float32")

    def plain(x: Tensor) -> Tensor:
        out = call(x)
        return out if isinstance(out, Tensor) else out[0]

    @torch.inference_mode()
    def work() -> Tensor:
        if form != "MONAI":
            return finish(predict_windows(plain, image, window, overlap=OVERLAP))
        from monai.inferers import sliding_window_inference

        return sliding_window_inference(image[None], window, 1, plain, overlap=OVERLAP, mode="gaussian")[0]

    def save(out: Tensor, path: Path) -> None:
        np.save(path, class_probabilities(net, out[None])[0].argmax(0).numpy().astype(np.uint8))

    measuring.serve(work, save, {"voxels": list(image.shape[1:])})


def measure(name: str, settings: argparse.Namespace) -> dict[str, Any]:
    """Run the forms of one network in turns."""
    variables = {"OMP_NUM_THREADS": str(settings.threads), "OMP_WAIT_POLICY": "PASSIVE"}
    words = ["--window", str(settings.window), "--spacing-mm", str(settings.spacing_mm)]
    with tempfile.TemporaryDirectory(prefix="fmseg-windows-") as folder:
        forms = [measuring.Form(form, [__file__, "--serve", name, "--form", form, *words], variables) for form in FORMS]
        measuring.take_turns(forms, settings.rounds)
        labels = {}
        for form in forms:
            form.save(Path(folder) / "labels.npy")
            labels[form.name] = np.load(Path(folder) / "labels.npy")
            form.end()
    peer, rows = forms[0], {}
    for form in forms:
        rows[form.name] = {
            **form.row(),
            "times_faster": round(statistics.median(b / a for a, b in zip(form.wall, peer.wall, strict=True)), 2),
            "times_less_processor_time": round(min(peer.processor) / min(form.processor), 2),
            "labels_equal": round(float((labels[form.name] == labels[peer.name]).mean()), 6),
        }
    return {"forms": rows, "foreground": round(float((labels[peer.name] != 0).mean()), 3)}


def main() -> None:
    """Measure the networks one after the other; write after each."""
    parser = measuring.parser_for(__doc__, "windows")
    parser.add_argument("--networks", nargs="+", choices=ENTRIES, default=["unet3d", "ma3dseg"])
    parser.add_argument("--window", type=int, default=96, help="voxels along each axis of a window")
    parser.add_argument("--spacing-mm", type=float, default=2.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--form", help=argparse.SUPPRESS)
    settings = parser.parse_args()
    if settings.serve:
        serve(settings.serve, settings.form, settings.window, settings.spacing_mm)
        return
    found: dict[str, Any] = {}
    for name in settings.networks:
        found[name] = measure(name, settings)
        for form, row in found[name]["forms"].items():
            print(
                f"{name:10} {form:20} {row['seconds']['median']:8.2f} s {row['times_faster']:6.2f}x  processor "
                f"{row['processor_seconds']['least']:8.2f} s {row['times_less_processor_time']:6.2f}x  "
                f"{row['peak_mb']:6.0f} MB  {100 * row['labels_equal']:8.4f} % equal",
                flush=True,
            )
        measuring.keep(settings.out, "windows", settings, {"networks": found})


if __name__ == "__main__":
    main()

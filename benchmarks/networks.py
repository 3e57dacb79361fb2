"""Every published network alone: layer by layer as it was published against the form that users run.

    python -m benchmarks networks [--only snet fmunet] [--size 96] [--rounds 3] [--threads 1]

*Plain* is the module in float32, layer by layer, with torch as it comes. *Engine* is what `prepare` makes of it, in
float32 and, where the processor multiplies it, in bfloat16. Each form runs in a process of its own and they take turns.
The seconds of the processor are those to compare on a machine that other programs use. Weights are those of a start.
Labels are compared with those of the plain form; "difference" is the largest one of a probability. Whether half
precision gives the same masks depends on the trained weights: the card of a model says so.

`FMSEG_CPU_CAPABILITY=avx2` measures what a processor without AVX-512 has; `--device cuda` a graphics card, with float16
beside float32 and its peak memory.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import measuring
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_fmseg.nets import build
from napari_fmseg.nets.runtime.device import pick_precision
from napari_fmseg.nets.runtime.prepare import prepare
from napari_fmseg.nets.traits import class_probabilities, init_weights


@dataclass(frozen=True)
class Entry:
    """A network, its arguments, and the channels of what it takes beside the image.

    It has at least `least` voxels along each axis: what it was published for, or what its context block needs.
    """

    name: str
    network: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    beside: tuple[int, ...] = ()
    least: int = 0
    per_slice: bool = False

    def build(self, side: int) -> nn.Module:
        """Make it for one channel and two classes."""
        more = {"slices": side} if self.per_slice else {}
        net = build(self.network, **{"n_classes": 2, **self.kwargs, **more}).eval()
        init_weights(net, torch.Generator().manual_seed(0))
        return net

    def inputs(self, side: int) -> list[Tensor]:
        """Return a smooth image with some noise, 0..1, and maps of probabilities beside it."""
        generator = torch.Generator().manual_seed(0)

        def smooth(channels: int) -> Tensor:
            coarse = torch.rand(1, channels, *[max(2, side // 8)] * 3, generator=generator)
            return F.interpolate(coarse, [side] * 3, mode="trilinear")

        image = smooth(1)
        image = (image + 0.05 * torch.randn(image.shape, generator=generator)).clamp(0, 1)
        maps = [smooth(n) for n in self.beside]
        return [image, *(m if m.shape[1] == 1 else m.softmax(1) for m in maps)]


ENTRIES = {
    entry.name: entry
    for entry in (
        Entry("fastunet", "fastunet"),
        Entry("snet", "snet", least=128),
        Entry("attnnet", "attnnet", beside=(1,), least=128),
        Entry("edgenet", "edgenet", beside=(2,), least=128),
        Entry("fmunet", "fmunet"),
        Entry("pctnet", "pctnet"),
        Entry("baseunet", "baseunet"),
        Entry("contextunet", "contextunet", least=128),
        Entry("efficientsegnet", "efficientsegnet", least=128),
        Entry("ma3dseg", "ma3dseg"),
        Entry("unet3d", "unet3d"),
        Entry("unet3d with pam", "unet3d", {"attention": "pam"}, per_slice=True),
    )
}


def serve(entry: Entry, form: str, side: int, device: torch.device) -> None:
    """Be one form of a network."""
    net, inputs = entry.build(side).to(device), [x.to(device) for x in entry.inputs(side)]
    if form == "plain float32":
        call, facts = net, {"precision": "float32"}
    elif form == "openvino bfloat16":
        call, facts = openvino_form(net, inputs), {"precision": "bfloat16"}
    else:
        measuring.be_like_the_command()
        precision = form.removeprefix("engine ")
        call, facts = prepare(net, device=device, precision=precision), {"precision": precision}

    def work() -> Tensor:
        with torch.inference_mode():
            out = call(*inputs)
            measuring.wait_for(device)
            return out if isinstance(out, Tensor) else out[0]

    def save(out: Tensor, path: Path) -> None:
        np.save(path, class_probabilities(net, out)[0].float().cpu().numpy())

    measuring.serve(work, save, facts)


def openvino_form(net: nn.Module, inputs: list[Tensor]) -> Any:
    """Compile a network by OpenVINO for bfloat16."""
    import openvino

    model = openvino.convert_model(net, example_input=tuple(inputs))
    compiled = openvino.Core().compile_model(
        model, "CPU", {"INFERENCE_PRECISION_HINT": "bf16", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    )

    def call(*given: Tensor) -> Tensor:
        return torch.from_numpy(compiled([x.numpy() for x in given])[0])

    return call


def forms_on(device: torch.device) -> list[str]:
    """Name the forms that a device of this machine can run."""
    forms = ["plain float32", "engine float32"]
    if device.type != "cpu":
        return [*forms, "engine float16"]
    if pick_precision(torch.device("cpu"), "auto", half_precision_ok=True) == "bfloat16":
        forms.append("engine bfloat16")
        if importlib.util.find_spec("openvino") is not None:
            forms.append("openvino bfloat16")
    return forms


def measure(entry: Entry, settings: argparse.Namespace) -> dict[str, Any]:
    """Run the forms of one network in turns."""
    side = settings.size if settings.small else max(settings.size, entry.least)
    variables = {"OMP_NUM_THREADS": str(settings.threads), "OMP_WAIT_POLICY": "PASSIVE"}
    with tempfile.TemporaryDirectory(prefix="fmseg-networks-") as folder:
        forms = [
            measuring.Form(
                name,
                [
                    __file__,
                    "--serve",
                    entry.name,
                    "--form",
                    name,
                    "--size",
                    str(side),
                    "--device",
                    str(settings.device),
                ],
                variables,
            )
            for name in forms_on(settings.device)
        ]
        measuring.take_turns(forms, settings.rounds, least_seconds=settings.enough)
        found = {}
        for form in forms:
            form.save(Path(folder) / "out.npy")
            found[form.name] = np.load(Path(folder) / "out.npy")
            form.end()
    plain = forms[0]
    labels = {name: probabilities.argmax(0) for name, probabilities in found.items()}
    rows = {}
    for form in forms:
        rows[form.name] = {
            **form.row(),
            "times_faster": round(statistics.median(b / a for a, b in zip(form.wall, plain.wall, strict=True)), 2),
            "times_less_processor_time": round(min(plain.processor) / min(form.processor), 2),
            "labels_equal": round(float((labels[form.name] == labels[plain.name]).mean()), 6),
            "difference": float(np.abs(found[form.name] - found[plain.name]).max()),
        }
    return {"voxels": [side] * 3, "foreground": round(float((labels[plain.name] != 0).mean()), 3),
            "rounds": len(plain.wall), "forms": rows}  # fmt: skip


def main() -> None:
    """Measure the networks one after the other; write after each."""
    parser = measuring.parser_for(__doc__, "networks", with_device=True)
    parser.add_argument("--only", nargs="+", choices=ENTRIES, default=list(ENTRIES))
    parser.add_argument("--size", type=int, default=96, help="voxels along each axis, where a network allows it")
    parser.add_argument("--small", action="store_true", help="--size for all networks, whatever it was published for")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--enough", type=float, default=60.0, help="processor seconds after which half the rounds do")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--form", help=argparse.SUPPRESS)
    settings = parser.parse_args()
    if settings.serve:
        serve(ENTRIES[settings.serve], settings.form, settings.size, settings.device)
        return
    peers = {"openvino bfloat16": "measured" if importlib.util.find_spec("openvino") else "not installed"}
    networks: dict[str, Any] = {}
    for name in settings.only:
        networks[name] = measure(ENTRIES[name], settings)
        for form, row in networks[name]["forms"].items():
            print(
                f"{name:16} {form:18} {row['seconds']['median']:8.3f} s {row['times_faster']:6.2f}x  processor "
                f"{row['processor_seconds']['least']:8.3f} s {row['times_less_processor_time']:6.2f}x  "
                f"{row['peak_mb']:6.0f} MB  {100 * row['labels_equal']:8.4f} % equal, {row['difference']:.1e}",
                flush=True,
            )
        measuring.keep(settings.out, "networks", settings, {"peers": peers, "networks": networks})


if __name__ == "__main__":
    main()

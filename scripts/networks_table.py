"""Write the table of all networks of the registry: parameters, multiply-adds and milliseconds for one volume.

python scripts/networks_table.py                  prints parameters and multiply-adds
python scripts/networks_table.py --write          measures the milliseconds too and writes docs/reference/networks.md
python scripts/networks_table.py --write --device cuda
python scripts/networks_table.py --write --only fcn unet2d    measures these, and keeps the other milliseconds
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from napari_fmseg.core.allocator import keep_freed_memory, own_process
from napari_fmseg.core.errors import MissingExtra
from napari_fmseg.core.hardware import processor_name
from napari_fmseg.nets import NETWORKS, build
from napari_fmseg.nets.unet3d import ATTENTIONS

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reference" / "networks.md"
SIZE = 96
LARGE = 128  # what a pooled strip of the context block needs
RUNS = 3
ENOUGH_SECONDS = 5  # no further run after so long


@dataclass(frozen=True)
class Entry:
    """One row: a network, its arguments, and what is left unsaid about them."""

    name: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    hidden: Mapping[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """What the first cell says."""
        told = ", ".join(f"{key}={value}" for key, value in self.kwargs.items())
        return f"`{self.name}`" + (f" ({told})" if told else "")

    @property
    def size(self) -> int:
        """Voxels along each axis."""
        strips = self.name in ("contextunet", "efficientsegnet") and self.kwargs.get("context") != "none"
        return LARGE if strips else SIZE

    @property
    def inputs(self) -> list[tuple[int, ...]]:
        """Shapes of the image and of what the network takes beside it."""
        beside = {"attnnet": (1,), "edgenet": (2,)}.get(self.name, ())
        return [(1, channels, *(self.size,) * 3) for channels in (1, *beside)]

    def build(self) -> nn.Module:
        """Make the network for one channel and two classes."""
        return build(self.name, **{"n_classes": 2, **self.kwargs, **self.hidden}).eval()


ENTRIES = [
    *(Entry(name) for name in NETWORKS),
    Entry("efficientsegnet", {"context": "none"}),
    Entry("uxnet3d", {"block": "dx"}),
    Entry("unet3d", {"attention": "cse"}),
    Entry("unet3d", {"attention": "pam"}, {"slices": SIZE}),
    Entry("vnet", {"attention": "pam"}, {"slices": SIZE}),
]


_PAM = (
    "The attention weights are initialised nearly open (0.95), so that a network begins as it would without attention; "
    "initialised half open, a U-Net with PAM needed twice the steps on cine MR. With three minutes of one CPU "
    "thread for each training (88 "
    "steps plain, 75 with PAM), 40 left atria for training and 10 others for measuring, U-Nets with PAM had a Dice "
    "of .264, .472 and .445 (three seeds), plain ones .239, .255 and .050: PAM helps there, and both had only begun "
    "to learn (`benchmarks/pam_atrium.py`)."
)


def main() -> None:
    """Print or write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", nargs="*", default=[], metavar="NETWORK")
    said = parser.parse_args()
    if said.write:
        own_process()
        keep_freed_memory()
        PAGE.write_text(page(torch.device(said.device), said.only), encoding="utf-8")
    else:
        print("\n".join(table()))


def cost(entry: Entry) -> tuple[int, int]:
    """Count the parameters and the multiply-adds of one volume; nothing is computed."""
    net, volumes = entry.build().to("meta"), [torch.zeros(shape, device="meta") for shape in entry.inputs]
    with FlopCounterMode(display=False) as counter, torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net(*volumes)
    return sum(p.numel() for p in net.parameters()), counter.get_total_flops() // 2


def cells(entry: Entry) -> list[str]:
    """Return the cells that the code alone decides."""
    parameters, multiply_adds = cost(entry)
    at = "" if entry.size == SIZE else f" (at {entry.size})"
    return [entry.title, f"{parameters:,}", f"{multiply_adds / 1e9:.1f} G{at}"]


def table(device: torch.device | None = None, only: Sequence[str] = ()) -> Iterator[str]:
    """Return the lines of the Markdown table, with milliseconds if there is a device to measure on.

    With `only`, those of the other networks are taken from the page as it is.
    """
    known = documented() if only else {}
    head = ["Network", "Parameters", "Multiply-adds", *(["ms"] if device else [])]
    yield f"| {' | '.join(head)} |"
    yield f"| --- |{' ---: |' * (len(head) - 1)}"
    for entry in ENTRIES:
        try:
            row = cells(entry)
        except MissingExtra as error:
            print(error, file=sys.stderr)
            continue
        if device:
            again = entry.name not in only and entry.title in known
            row.append(known[entry.title] if again else f"{milliseconds(entry, device):,.0f}")
            print(*row, file=sys.stderr)
        yield f"| {' | '.join(row)} |"


def documented() -> dict[str, str]:
    """Return the milliseconds on the page, by the first cell."""
    rows = [line.strip("| ").split(" | ") for line in PAGE.read_text(encoding="utf-8").splitlines()]
    return {row[0]: row[3] for row in rows if len(row) == 4}


def milliseconds(entry: Entry, device: torch.device) -> float:
    """Time the fastest of up to `RUNS` runs."""
    net, volumes = entry.build().to(device), [torch.rand(shape, device=device) for shape in entry.inputs]
    seconds: list[float] = []
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        while len(seconds) < RUNS and sum(seconds) < ENOUGH_SECONDS:
            start = time.perf_counter()
            net(*volumes)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - start)
    return 1000 * min(seconds)


def described(device: torch.device) -> str:
    """Name the device, and the threads if it is the CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    n = torch.get_num_threads()
    return f"{processor_name()}, {n} thread{'s' if n > 1 else ''}"


def page(device: torch.device, only: Sequence[str] = ()) -> str:
    """Return docs/reference/networks.md; see `table`."""
    kinds = "\n".join(f"- `{name}`: {what}" for name, what in ATTENTIONS.items() if name != "none")
    light, heavy = cost(Entry("ma3dseg")), cost(Entry("uxnet3d"))
    fewer, cheaper = (b / a for a, b in zip(light, heavy, strict=True))
    rows = "\n".join(table(device, only))
    return (
        "# Networks\n\nEvery network is built by its name, "
        '`napari_fmseg.nets.build("unet3d", in_channels=2, n_classes=3)`; `n_classes` includes the background. '
        "This page is generated by `scripts/networks_table.py --write`.\n\n"
        f"For one channel, two classes and one volume of {SIZE} x {SIZE} x {SIZE} voxels ({LARGE} x {LARGE} x {LARGE} "
        "where the network needs more); a multiply-add counts once. Milliseconds: the fastest of "
        f"up to {RUNS} runs in float32 on {described(device)}, torch {torch.__version__}, layer by layer, "
        "approximate where the machine was also busy with other work; `fmseg segment` may be faster "
        f"([Speed](../developers/speed.md))."
        f"\n\n{rows}\n\n"
        f"`ma3dseg` needs {cheaper:.0f} times fewer multiply-adds and {fewer:.0f} times fewer parameters than "
        "`uxnet3d`; on a CPU the time shrinks less, since most of it is memory traffic. It is a "
        "reconstruction: the code of the network was never published, and the public code of that name is 3D "
        "UX-Net with another block (`block=dx`). The `monai-` networks are MONAI's own and need "
        "`pip install 'napari-fmseg[classic]'`; so does `deeplabv3plus`, whose encoder is MONAI's.\n\n"
        "`unet2d`, `fcn` and `deeplabv3plus` process each slice separately, as published for images; with `dims=3` "
        "they process the volume. `hdenseunet` does both.\n\n"
        "## Attention\n\n`unet3d` and `vnet` take `attention=`, which names what is weighted, and additionally "
        f"`gated=True` for attention gates on the skip connections.\n\n{kinds}\n\n{_PAM}\n"
    )


if __name__ == "__main__":
    main()

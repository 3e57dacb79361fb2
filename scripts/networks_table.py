"""Write the table of all networks of the registry: parameters, multiply-adds and, if asked for, milliseconds.

python scripts/networks_table.py            prints the table
python scripts/networks_table.py --time     measures one volume of 96 x 96 x 96 voxels on this CPU too
python scripts/networks_table.py --write    writes docs/networks.md
"""

from __future__ import annotations

import sys
import time
import warnings
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from napari_fmseg.errors import MissingExtra
from napari_fmseg.nets import NETWORKS, build
from napari_fmseg.nets.zoo import ATTENTIONS

ROOT = Path(__file__).parents[1]
SIZE = 96
# What a network takes beside the image: channels of each further input.
BESIDE = {"attnnet": (1,), "edgenet": (2,)}
# The published form of a network where it is not the default; strips need 49 x 49 x 113 voxels at least.
VARIANTS = [
    *((name, {}) for name in NETWORKS),
    ("uxnet3d", {"block": "dx"}),
    ("unet3d", {"attention": "cse"}),
    ("unet3d", {"attention": "pam", "slices": SIZE}),
    ("vnet", {"attention": "pam", "slices": SIZE}),
]


def main() -> None:
    """Print or write the table."""
    text = table(timed="--time" in sys.argv)
    if "--write" in sys.argv:
        (ROOT / "docs" / "networks.md").write_text(page(text), encoding="utf-8")
    else:
        print(text)


def page(rows: str) -> str:
    """Give docs/networks.md."""
    kinds = "\n".join(f"- `{name}`: {what}" for name, what in ATTENTIONS.items())
    return (
        "# Networks\n\nMade by `scripts/networks_table.py --write`. Every network is built by its name, "
        '`napari_fmseg.nets.build("unet3d", in_channels=2, n_classes=3)`; `n_classes` counts the background. Numbers '
        f"are for one channel, two classes and a volume of {SIZE} x {SIZE} x {SIZE} voxels ({128} x {128} x {128} "
        "where the network needs more); a multiply-add counts once.\n\n"
        f"{rows}\n\n`ma3dseg` is a reconstruction: the network of that name was never published. The `monai-` networks "
        "are MONAI's own and need `pip install 'napari-fmseg[classic]'`.\n\n"
        "## Attention\n\n`unet3d` and `vnet` take `attention=`, a word for what is weighted, and `gated=True` for "
        f"gates on the skips beside it.\n\n{kinds}\n"
    )


def table(*, timed: bool) -> str:
    """Give the Markdown table."""
    head = ["Network", "Parameters", "Multiply-adds", *(["ms"] if timed else [])]
    rows = [f"| {' | '.join(head)} |", f"| --- |{' ---: |' * (len(head) - 1)}"]
    for name, kwargs in VARIANTS:
        try:
            rows.append("| " + " | ".join(row(name, kwargs, timed)) + " |")
        except MissingExtra as error:
            print(error, file=sys.stderr)
    return "\n".join(rows)


def row(name: str, kwargs: dict[str, object], timed: bool) -> list[str]:
    """Give the cells of one network."""
    size = 128 if name in ("contextunet", "efficientsegnet") else SIZE
    told = ", ".join(f"{key}={value}" for key, value in kwargs.items() if key != "slices")
    given = {"n_classes": 2, **kwargs}
    inputs = [(1, channels, size, size, size) for channels in (1, *BESIDE.get(name, ()))]
    net = build(name, **given).eval()
    cells = [f"`{name}`" + (f" ({told})" if told else "")]
    cells.append(f"{sum(p.numel() for p in net.parameters()):,}")
    milliseconds = clock(net, inputs) if timed else None
    with FlopCounterMode(display=False) as counter, torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net.to("meta")(*(torch.zeros(shape, device="meta") for shape in inputs))
    cells.append(f"{counter.get_total_flops() / 2e9:.1f} G" + ("" if size == SIZE else f" (at {size})"))
    return cells if milliseconds is None else [*cells, f"{milliseconds:.0f}"]


def clock(net: torch.nn.Module, inputs: list[tuple[int, ...]]) -> float:
    """Time the second of two runs, in milliseconds."""
    volumes = [torch.rand(shape) for shape in inputs]
    with torch.inference_mode():
        net(*volumes)
        start = time.perf_counter()
        net(*volumes)
    return 1000 * (time.perf_counter() - start)


if __name__ == "__main__":
    main()

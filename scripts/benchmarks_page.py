"""Write docs/developers/benchmarks.md and its picture from benchmarks/results.

python scripts/benchmarks_page.py            prints the page
python scripts/benchmarks_page.py --write    writes both
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "developers" / "benchmarks.md"
PICTURE = ROOT / "docs" / "images" / "benchmarks_networks.svg"

SHOWN = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16")
BAR, GAP, LEFT, WIDTH = 12, 6, 130, 560
COLOURS = {"engine float32": "#4477aa", "engine bfloat16": "#66ccee", "engine float32, AVX2 alone": "#ccbb44"}


def results(name: str, folder: Path = RESULTS) -> dict[str, Any] | None:
    """Read the results of a benchmark; None where it was not run."""
    path = folder / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def machine(found: Mapping[str, Any]) -> str:
    """Describe the machine in a line."""
    told = found["machine"]
    fast = ", ".join(name for name in told["instruction_sets"] if name in SHOWN)
    limited = f"; limited to {told['limited_to']}" if told["limited_to"] else ""
    load = f"load {told['load'][0]:g}" if told["load"] else "load unknown"
    return (
        f"{told['processor']} ({fast}{limited}), {told['threads']} thread(s) on {told['cores']} cores, {load}, "
        f"{told['system']}, torch {told['versions']['torch']}, napari-fmseg {told['versions']['napari-fmseg']}."
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of Markdown: words to the left, numbers to the right."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *rows))


def networks_rows(found: Mapping[str, Any]) -> Iterator[list[str]]:
    """Yield a row for each form of each network."""
    for name, entry in found["networks"].items():
        size = entry["voxels"][0]
        for form, row in entry["forms"].items():
            plain = form == "plain float32"
            yield [
                f"{name}, {size}³" if plain else "",
                form,
                f"{row['processor_seconds']['least']:.3f}",
                "" if plain else f"{row['times_less_processor_time']:.2f}",
                "" if plain else f"{row['times_faster']:.2f}",
                f"{row['peak_mb']:.0f}",
                "" if plain else f"{100 * row['labels_equal']:.3f}",
                "" if plain else f"{row['difference']:.0e}",
            ]


def networks_section(name: str, title: str) -> str:
    """Return what is told of the networks alone."""
    found = results(name)
    if found is None:
        return ""
    head = (
        "Network",
        "Form",
        "processor, s",
        "times less",
        "by the clock",
        "peak, MB",
        "labels equal, %",
        "difference",
    )
    return f"## {title}\n\n{machine(found)}\n\n{table(head, list(networks_rows(found)))}\n"


def picture() -> str:
    """Draw how many times less processor time than plain float32 each form of each network takes."""
    bars: dict[str, dict[str, float]] = {}
    for name, suffix in (("networks", ""), ("networks_avx2", ", AVX2 alone")):
        for network, entry in (results(name) or {"networks": {}})["networks"].items():
            for form, row in entry["forms"].items():
                if form + suffix in COLOURS:
                    bars.setdefault(network, {})[form + suffix] = row["times_less_processor_time"]
    longest = max((value for row in bars.values() for value in row.values()), default=1.0)
    scale = (WIDTH - LEFT - 40) / longest
    parts, y = [], 30
    for i, (form, colour) in enumerate(COLOURS.items()):
        x = LEFT + 140 * i
        parts.append(f'<rect x="{x}" y="8" width="10" height="10" fill="{colour}"/>')
        parts.append(f'<text x="{x + 14}" y="17">{form}</text>')
    top = y
    for network, row in bars.items():
        parts.append(f'<text x="{LEFT - 6}" y="{y + 10}" text-anchor="end">{network}</text>')
        for form, value in row.items():
            long = value * scale
            parts.append(f'<rect x="{LEFT}" y="{y}" width="{long:.1f}" height="{BAR}" fill="{COLOURS[form]}"/>')
            parts.append(f'<text x="{LEFT + long + 4:.1f}" y="{y + 10}">{value:.1f}</text>')
            y += BAR
        y += GAP
    one = f'<line x1="{LEFT + scale:.1f}" x2="{LEFT + scale:.1f}" y1="{top}" y2="{y}" stroke="#bb5566"/>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y + 4}" font-family="sans-serif" '
        f'font-size="11">\n<rect width="100%" height="100%" fill="white"/>\n' + "\n".join([*parts, one]) + "\n</svg>\n"
    )


def stages_section() -> str:
    """Return what is told of the stages."""
    found = results("stages")
    if found is None:
        return ""
    rows = [
        [f"`{model}`, {part}", f"{states['cold']['median']:.3f}", f"{states['warm']['median']:.3f}"]
        for model, parts in found["models"].items()
        for part, states in parts.items()
    ]
    head = ("Model, part", "cold, s", "warm, s")
    return f"## Stages of `fmseg segment`\n\nBy the clock. {machine(found)}\n\n{table(head, rows)}\n"


def file_to_mask_section() -> str:
    """Return what is told of a large CT."""
    found = results("file_to_mask")
    if found is None:
        return ""
    parts = ("reading", "inputs", "networks", "labels", "writing")
    rows = [
        [
            f"`{model}`",
            *(f"{row['processor_seconds'][part]['median']:.2f}" for part in parts),
            f"{100 * row['share_beside_networks']['median']:.0f} %",
            f"{row['peak_mb']}",
        ]
        for model, row in found["models"].items()
    ]
    shape = " x ".join(str(n) for n in reversed(found["settings"]["shape"]))
    head = ("Model", *(f"{part}, s" for part in parts), "beside the networks", "peak, MB")
    return f"## File to mask, CT of {shape}\n\nSeconds of the processor. {machine(found)}\n\n{table(head, rows)}\n"


def windows_section() -> str:
    """Return what is told of overlapping windows beside MONAI's."""
    found = results("windows")
    if found is None:
        return ""
    rows = [
        [
            f"{name}, {' x '.join(str(n) for n in reversed(row['voxels']))}" if form == "MONAI" else "",
            form,
            f"{row['processor_seconds']['least']:.1f}",
            f"{row['times_less_processor_time']:.2f}",
            f"{row['times_faster']:.2f}",
            f"{row['peak_mb']:.0f}",
            f"{100 * row['labels_equal']:.3f}",
        ]
        for name, entry in found["networks"].items()
        for form, row in entry["forms"].items()
    ]
    side = found["settings"]["window"]
    head = ("Network, volume", "Form", "processor, s", "times less", "by the clock", "peak, MB", "labels equal, %")
    return (
        f"## Overlapping windows beside MONAI's\n\nA CT phantom in windows of {side}³ that overlap by half. "
        f"{machine(found)}\n\n{table(head, rows)}\n"
    )


def training_section() -> str:
    """Return what is told of a step of training."""
    found = results("training_step")
    if found is None:
        return ""
    told = found["training"]
    seconds = {part: value["median"] for part, value in told["processor_seconds_per_step"].items()}
    whole = sum(seconds.values())
    rows = [[part, f"{1000 * value:.1f}", f"{100 * value / whole:.0f} %"] for part, value in seconds.items()]
    grid = " x ".join(str(n) for n in told["grid"])
    return (
        f"## A step of what Teach proposes\n\n`{told['network']}` on {grid} voxels ({found['data']}), batch "
        f"{told['batch']}, {told['precision']}: {told['steps_per_processor_second']['median']:.2f} steps per second of "
        f"the processor. Samples are drawn in a thread, one step ahead: by the clock, a step waits for them "
        f"{100 * told['waiting_share']['median']:.0f} % of its time. {machine(found)}\n\n"
        f"{table(('Part', 'processor, ms', 'share'), rows)}\n"
    )


def growth_section() -> str:
    """Return what is told of sizes and classes."""
    found = results("growth")
    if found is None:
        return ""
    rows = [
        [
            " x ".join(str(n) for n in reversed(cell["shape"])),
            cell["part"],
            str(cell["classes"]),
            f"{cell['processor_seconds']['least']:.3f}",
            f"{cell['peak_mb'] - cell['base_mb']}",
        ]
        for cell in found["cells"]
    ]
    head = ("Voxels", "part", "classes", "processor, s", "memory beside what it held, MB")
    return f"## Growth beside the networks\n\n{machine(found)}\n\n{table(head, rows)}\n"


def startup_section() -> str:
    """Return what is told of starting."""
    found = results("startup")
    if found is None:
        return ""
    rows = [
        [name, f"{row['processor_seconds']['median']:.2f}", f"{row['seconds']['median']:.2f}"]
        for name, row in found["starts"].items()
    ]
    head = ("Start", "processor, s", "by the clock, s")
    return f"## Start-up\n\n{machine(found)}\n\n{table(head, rows)}\n"


def page() -> str:
    """Return the page."""
    sections = [
        networks_section("networks", "Networks alone"),
        networks_section("networks_avx2", "Networks alone, a processor with AVX2"),
        stages_section(),
        file_to_mask_section(),
        windows_section(),
        training_section(),
        growth_section(),
        startup_section(),
    ]
    return (
        "# Benchmarks\n\n"
        "`python -m benchmarks` lists the benchmarks, `python -m benchmarks NAME --help` explains one. This page is "
        "generated from `benchmarks/results` by `scripts/benchmarks_page.py --write`. Where other programs use the "
        "machine (the load says so), seconds of the processor are the figures to compare, and those by the clock say "
        "little. *Plain* is a network layer by layer in float32, *engine* the form that users run. Weights are those "
        "of a start: whether half precision gives the same masks is a matter of the trained weights, see "
        "[Speed](speed.md).\n\n"
        "![Times less processor time than plain float32](../images/benchmarks_networks.svg)\n\n"
        + "\n".join(section for section in sections if section)
    )


def main() -> int:
    """Write the page and its picture, or print the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    if parser.parse_args().write:
        PAGE.write_text(page(), encoding="utf-8")
        PICTURE.write_text(picture(), encoding="utf-8")
    else:
        sys.stdout.write(page())
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""`fmseg bench` and `fmseg phantom`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import OmitArgPrefixes, Positional, arg

from napari_fmseg.cli.console import Json, number, say, show_terms, table, write_json
from napari_fmseg.cli.progress import Bars, show_event
from napari_fmseg.pipelines import SegmentOptions


def bench(
    *,
    image: Path | None = None,
    model: str = "fmsf-phantom-ct",
    run: OmitArgPrefixes[SegmentOptions] = SegmentOptions(),  # noqa: B008 - frozen
    repeats: int = 5,
    compare: bool = True,
    as_json: Json = False,
) -> int:
    """Measure time and peak memory of reading, every stage and writing; compare our network code with plain torch.

    `fmseg evaluate` reports them for each case of a folder, beside Dice.

    Parameters
    ----------
    image
        The volume to segment; without one a CT phantom.
    model
        A model's name or the path of a model card.
    repeats
        Runs after one that warms up; medians are reported.
    compare
        Also run the published SNet at 128 x 128 x 128, by our code and plain, in turns.
    """
    from napari_fmseg.evaluation import benchmark
    from napari_fmseg.models.registry import find_card
    from napari_fmseg.models.weights import load_model

    card = find_card(model)
    show_terms(card, accepted=False)
    loaded = load_model(card, device=run.device)
    results: dict[str, Any] = {}
    with Bars(quiet=as_json) as bars:
        for event in benchmark.benchmark(image or _phantom_volume(), loaded, run, repeats=repeats):
            show_event(event, bars)
            if isinstance(event, benchmark.Benchmark):
                results["benchmark"] = event
        if compare:
            snet = benchmark.snet_example()
            pairs = benchmark.compare_with_plain(
                *snet, device=str(loaded.device), precision=run.precision, repeats=repeats
            )
            for turn in pairs:
                show_event(turn, bars)
                if isinstance(turn, benchmark.Comparison):
                    results["pairing"] = turn
    if as_json:
        write_json({name: dataclasses.asdict(result) for name, result in results.items()})
        return 0
    _show_benchmark(results["benchmark"])
    if "pairing" in results:
        _show_comparison(results["pairing"])
    return 0


def _phantom_volume() -> Any:
    from napari_fmseg.datasets.phantom import phantom_ct

    return phantom_ct(1)[0]


def _show_benchmark(found: Any) -> None:
    machine = found.environment
    say(f"{found.model} on {machine['device']}, {machine['processor']}, {machine['threads']} threads, "
        f"{found.precision}; {' x '.join(map(str, found.shape))} voxels, median of {found.repeats}")  # fmt: skip
    rows = [
        (name, number(part.seconds), number(part.fastest), f"{part.peak_mb:.0f}", f"{part.gpu_mb:.0f}")
        for name, part in found.parts.items()
    ]
    say(table(("PART", "SECONDS", "FASTEST", "PEAK MB", "GPU MB"), rows))
    say(f"file to file: {found.total_seconds:.3f} s")
    inflate = found.inflate_seconds
    if inflate:
        say(f"inflating the file: {inflate['ours']:.3f} s, by the standard library {inflate['standard library']:.3f} s")


def _show_comparison(found: Any) -> None:
    say(f"{found.network} at {' x '.join(map(str, found.shape))}, {found.repeats} pairs: "
        f"engine {found.engine_seconds:.3f} s, plain float32 {found.plain_seconds:.3f} s, "
        f"{found.times_faster:.1f} times faster ({found.times_less_work:.1f} times less processor time), "
        f"{100 * found.equal:.3f} % of the labels equal")  # fmt: skip


def phantom(
    out: Positional[Annotated[Path, arg(metavar="OUT")]],
    /,
    *,
    seed: int = 1,
    spacing: tuple[float, float, float] = (3.0, 3.0, 3.0),
) -> int:
    """Write a synthetic abdominal CT with its labels.

    Parameters
    ----------
    out
        The image (ct.nii.gz; the labels become ct_labels.nii.gz), or a folder.
    seed
        Of the random anatomy; the same seed gives the same voxels.
    spacing
        Voxel spacing along z, y, x in mm.
    """
    from napari_fmseg.datasets.phantom import phantom_ct
    from napari_fmseg.io import suffix_of, write_labels, write_volume

    image, labels = phantom_ct(seed, spacing=spacing)
    suffix = suffix_of(out)
    path = out if suffix else out / "phantom.nii.gz"
    suffix = suffix or ".nii.gz"
    beside = path.with_name(f"{path.name[: -len(suffix)]}_labels{suffix}")
    for written in (write_volume(image, path), write_labels(labels, beside, source=image)):
        say(str(written))
    return 0

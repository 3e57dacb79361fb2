"""Cases downsampled once for coarse-to-fine training, by several processes, and cached on disk.

Each case is kept twice, as it was measured: the whole volume and the surroundings of its labels, both no finer than
the networks will ever look at. Many cases share one safetensors file, whose tensors are mapped from disk: only what
is looked at is read, and what was looked at lately stays in memory as long as there is room.

``python -m napari_fmseg.training.data.case_cache`` is one such process: it reads a task from its standard input, one
line of
JSON, and tells of each finished case in a line.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import queue
import sys
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from napari_fmseg.core.allocator import own_process
from napari_fmseg.core.atomic_write import atomic_write
from napari_fmseg.core.errors import FmsegError
from napari_fmseg.core.events import Progress
from napari_fmseg.core.hardware import n_cores
from napari_fmseg.core.processes import ChildProcess, End, python_module, when_parent_exits
from napari_fmseg.core.resampling_torch import bounding_box, box_above, resize, to_canonical, to_tensor
from napari_fmseg.core.structuring import structure
from napari_fmseg.core.volume import Box
from napari_fmseg.datasets.case import IGNORE, Case, read_case
from napari_fmseg.datasets.projects.image_hash import image_hash
from napari_fmseg.models.measures import Measures, measure_volume
from napari_fmseg.models.settings import CoarseFineSettings
from napari_fmseg.training.data.samples import Sample
from napari_fmseg.training.recipe import Recipe

__all__ = ["Prepared", "prepare"]

_FINER = 1.25  # than the networks' grids: room for windows that are smaller than the whole
_PER_FILE = 16
_WORTH_A_PROCESS = 8  # cases; below, starting it takes longer than it saves
_FORM = 1
_END = End(
    name="A process that prepared cases for training",
    expected="read them all",
    memory="for several cases at once: set processes = 1 in the recipe to prepare one after the other",
    advice="Run it again; finished cases stay.",
)


@dataclass(frozen=True)
class Prepared(Sample):
    """A case at two resolutions; intensities are as measured.

    Attributes
    ----------
    image, labels
        The surroundings of the labels, (c, z, y, x) and (z, y, x).
    edges
        Where the labels begin and end in them, along z, y, x, in voxels of `image`.
    spacing
        Of `image` (z, y, x), in mm.
    whole, whole_labels
        The whole volume.
    place
        Where the networks are; the tensors are on the CPU.
    """

    edges: tuple[tuple[float, float], ...] = ()
    whole: Tensor = dataclasses.field(default_factory=lambda: torch.zeros(0))
    whole_labels: Tensor = dataclasses.field(default_factory=lambda: torch.zeros(0))
    place: torch.device | str = "cpu"


@dataclass(frozen=True)
class _Wish:
    """How a case is downsampled."""

    labels: tuple[str, ...]
    ignore: int
    coarse_size: tuple[int, int, int]
    fine_size: tuple[int, int, int]
    reach_mm: float
    margin_mm: float
    crop_above: float | None
    form: int = _FORM


Order = tuple[str, Case, Mapping[int, str]]
"""What a case is kept as, the case, and the names of the labels in its file."""


def prepare(
    cases: Sequence[tuple[Case, Mapping[int, str]]], recipe: Recipe, folder: Path, place: torch.device
) -> Generator[Progress, None, list[Prepared]]:
    """Downsample cases, or take them from `folder` where they are cached already.

    Parameters
    ----------
    cases
        Each with the class names by the number in its label file.
    recipe
        For the coarse-to-fine pipeline.
    folder
        Where they are kept. A run that was killed goes on where it was.
    place
        Where the networks are.

    Yields
    ------
    Progress
        After every case that is new.

    Returns
    -------
    list
        In the order of `cases`; nobody has said yet what they were never labelled with.

    Raises
    ------
    FmsegError
        As `napari_fmseg.datasets.case.read_case`.
    """
    wish = _wish(recipe)
    folder.mkdir(parents=True, exist_ok=True)
    keys = [_key(case, names, wish) for case, names in cases]
    known = _find_kept(folder)
    todo = {key: (key, case, names) for key, (case, names) in zip(keys, cases, strict=True) if key not in known}
    orders = list(todo.values())
    processes = recipe.processes or min(n_cores(), len(orders) // _WORTH_A_PROCESS)
    work = _by_processes(orders, wish, folder, processes) if processes > 1 else _here(orders, wish, folder)
    for done, _ in enumerate(work, 1):
        yield Progress("preparing", done, len(orders))
    known = _find_kept(folder)
    return [_open(known[key], key, case.name, place) for key, (case, _) in zip(keys, cases, strict=True)]


def _wish(recipe: Recipe) -> _Wish:
    settings = CoarseFineSettings.of(recipe.settings)
    return _Wish(
        labels=tuple(recipe.labels),
        ignore=recipe.ignore,
        coarse_size=settings.coarse_size,
        fine_size=settings.fine_size,
        reach_mm=max(settings.margin_mm, recipe.augment.jitter_mm),
        margin_mm=settings.margin_mm,
        crop_above=settings.crop_above,
    )


def _key(case: Case, names: Mapping[int, str], wish: _Wish) -> str:
    """Return the cache key of a case: a hash of its files and of how it is downsampled."""
    files = [*case.images, *([case.labels] if case.labels else [])]
    facts = [(str(p.absolute()), p.stat().st_size, p.stat().st_mtime_ns) for p in files if p.exists()]
    told = json.dumps([facts, sorted(names.items()), dataclasses.asdict(wish)])
    return hashlib.sha256(told.encode()).hexdigest()[:24]


def _find_kept(folder: Path) -> dict[str, Path]:
    """Return the cache files by the keys of the cases in them."""
    from safetensors import SafetensorError, safe_open

    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                found |= dict.fromkeys(file.metadata() or {}, path)
        except (SafetensorError, OSError):  # cut short by a full disk
            path.unlink(missing_ok=True)
    return found


def _open(path: Path, key: str, name: str, place: torch.device) -> Prepared:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        facts = json.loads(file.metadata()[key])
        image, labels, whole, whole_labels = (file.get_tensor(f"{key}/{part}") for part in _PARTS)
    edges = tuple((float(a), float(b)) for a, b in facts["edges"])
    z, y, x = facts["spacing"]
    source = structure(Measures, facts["measures"]) if "measures" in facts else None  # of earlier versions
    return Prepared(
        name, image, labels, (), (z, y, x), edges, whole, whole_labels, place,
        source=source, image_hash=facts.get("image_hash", ""), warnings=tuple(facts.get("warnings", ())),
    )  # fmt: skip


_PARTS = ("image", "labels", "whole", "whole_labels")


def _here(orders: Sequence[Order], wish: _Wish, folder: Path) -> Iterator[str]:
    """Downsample cases in this process; yield the key of each."""
    from safetensors.torch import save

    for first in range(0, len(orders), _PER_FILE):
        tensors: dict[str, Tensor] = {}
        facts: dict[str, str] = {}
        for key, case, names in orders[first : first + _PER_FILE]:
            parts, facts[key] = _prepare_case(case, names, wish)
            tensors |= {f"{key}/{part}": tensor for part, tensor in parts.items()}
            yield key
        path = folder / f"{hashlib.sha256(' '.join(facts).encode()).hexdigest()[:24]}.safetensors"
        with atomic_write(path) as file:
            file.write(save(tensors, metadata=facts))


def _prepare_case(case: Case, names: Mapping[int, str], wish: _Wish) -> tuple[dict[str, Tensor], str]:
    """Read a case and downsample it twice; return the tensors and, in JSON, its edges and spacing."""
    volume, truth = read_case(case, names, wish.labels, wish.ignore)
    data, geometry = to_canonical(volume)
    image, labels = to_tensor(data), to_tensor(to_canonical(truth)[0])[0]
    shape = geometry.shape
    body = None if wish.crop_above is None else box_above(image, wish.crop_above)
    whole, whole_labels = _crop_and_shrink(image, labels, body or _all(shape), [_FINER * n for n in wish.coarse_size])
    known = bounding_box((labels > 0) & (labels != IGNORE)) or _all(shape)
    reach = [math.ceil(wish.reach_mm / s) for s in geometry.spacing]
    z, y, x = (slice(max(0, k.start - r), min(n, k.stop + r)) for k, r, n in zip(known, reach, shape, strict=True))
    crop = (z, y, x)
    most = [
        _FINER * fine * (c.stop - c.start) / (k.stop - k.start)
        for fine, c, k in zip(wish.fine_size, crop, known, strict=True)
    ]
    near, near_labels = _crop_and_shrink(image, labels, crop, most)
    scale = [n / (c.stop - c.start) for n, c in zip(near_labels.shape, crop, strict=True)]
    edges = [((k.start - c.start) * f, (k.stop - c.start) * f) for k, c, f in zip(known, crop, scale, strict=True)]
    facts = {
        "edges": edges,
        "spacing": [s / f for s, f in zip(geometry.spacing, scale, strict=True)],
        "measures": dataclasses.asdict(measure_volume(volume)),
        "image_hash": image_hash(volume),
        "warnings": [*volume.warnings, *truth.warnings],
    }
    return {"image": near, "labels": near_labels, "whole": whole, "whole_labels": whole_labels}, json.dumps(facts)


def _crop_and_shrink(image: Tensor, labels: Tensor, box: Box, most: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Crop image and labels, and downsample them where they have more voxels than `most`."""
    image, labels = image[(slice(None), *box)], labels[box]
    size = [min(n, math.ceil(m)) for n, m in zip(labels.shape, most, strict=True)]
    for axis, (n, m) in enumerate(zip(labels.shape, size, strict=True)):
        if m < n:
            places = ((torch.arange(m) + 0.5) * n / m).long().clamp(max=n - 1)
            labels = labels.index_select(axis, places)
    out = resize(image, size) if tuple(size) != tuple(image.shape[1:]) else image.float()
    small = bool(out.abs().max() < 60000)  # float16 ends at 65504
    return out.to(torch.float16 if small else torch.float32).contiguous().clone(), labels.contiguous().clone()


def _all(shape: Sequence[int]) -> Box:
    z, y, x = (slice(0, n) for n in shape)
    return z, y, x


def _by_processes(orders: Sequence[Order], wish: _Wish, folder: Path, processes: int) -> Iterator[str]:
    """Downsample cases in several processes; yield the key of each."""
    per_file = max(1, min(_PER_FILE, math.ceil(len(orders) / processes)))
    parts = [orders[i : i + per_file] for i in range(0, len(orders), per_file)]
    shares = [[order for part in parts[i::processes] for order in part] for i in range(min(processes, len(parts)))]
    lines: queue.Queue[str | ChildProcess] = queue.Queue()
    with contextlib.ExitStack() as stack:
        children = [stack.enter_context(_start(share, wish, folder)) for share in shares]
        threads = [threading.Thread(target=_listen, args=(child, lines), daemon=True) for child in children]
        for thread in threads:
            thread.start()
            stack.callback(thread.join)
        for child in children:
            stack.callback(child.kill)  # before the thread is joined
        running = len(children)
        while running:
            line = lines.get()
            if isinstance(line, ChildProcess):
                running -= 1
                if line.wait():
                    raise line.why_it_ended(_END)
            elif line.startswith("!"):
                code, _, text = line[1:].partition(" ")
                error = FmsegError(text)
                error.exit_code = int(code)  # a full disk is a fault of the machine here, too
                raise error
            else:
                yield line


def _start(share: Sequence[Order], wish: _Wish, folder: Path) -> ChildProcess:
    command = python_module("napari_fmseg.training.data.case_cache")
    child = ChildProcess(command, "preparation of the cases", variables={"OMP_NUM_THREADS": "1"})
    orders: list[Any] = [[key, dataclasses.asdict(case), {**names}] for key, case, names in share]
    task = {"orders": orders, "wish": dataclasses.asdict(wish), "folder": str(folder.absolute())}
    with contextlib.suppress(BrokenPipeError):  # its end is reported where it is listened to
        child.stdin.write(json.dumps(task, default=str).encode())
        child.stdin.close()
    return child


def _listen(child: ChildProcess, lines: queue.Queue[str | ChildProcess]) -> None:
    for line in child.stdout:
        lines.put(line.decode().strip())
    child.wait()
    lines.put(child)


def _serve() -> None:
    """Run as one of the processes."""
    when_parent_exits(os.getppid(), lambda: os._exit(1))
    own_process()
    torch.set_num_threads(1)
    task: dict[str, Any] = json.loads(sys.stdin.buffer.read())
    wish = task["wish"]
    for name in ("labels", "coarse_size", "fine_size"):
        wish[name] = tuple(wish[name])
    orders: list[Order] = []
    for key, case, names in task["orders"]:
        images, labels = tuple(Path(p) for p in case["images"]), case["labels"]
        own = Case(case["name"], images, Path(labels) if labels else None, tuple(case["classes"]))
        orders.append((key, own, {int(value): name for value, name in names.items()}))
    try:
        for key in _here(orders, _Wish(**wish), Path(task["folder"])):
            _write_line(key)
    except FmsegError as error:
        _write_line(f"!{error.exit_code} {error}".replace("\n", " "))


def _write_line(text: str) -> None:
    sys.stdout.buffer.write(f"{text}\n".encode())
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    _serve()

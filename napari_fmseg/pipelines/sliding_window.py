"""A volume larger than the network's patch: overlapping windows, their outputs blended with a Gaussian.

The sum over the windows is kept on the device where there is room for it, else in the computer's memory. Windows in
which all voxels are equal, air for example, are computed once.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Generator, Sequence

import torch
from torch import Tensor

from napari_fmseg.core.errors import InvalidRecipe
from napari_fmseg.core.events import Progress

__all__ = [
    "BLENDS",
    "KEPT_BYTES",
    "constant_value",
    "free_memory",
    "gaussian_importance",
    "mirror_axes",
    "predict_windows",
    "window_starts",
]

_SHARE = 0.8  # of the free memory of a device may be taken by the sum over the windows

KEPT_BYTES = 128 << 20
"""How large the output for a window may be that is kept for others with the same voxels."""

Size = tuple[int, int, int]


def predict_windows(
    call: Callable[[Tensor], Tensor],
    image: Tensor,
    window: Sequence[int],
    *,
    overlap: float = 0.5,
    batch: int = 1,
    flips: Sequence[tuple[int, ...]] = ((),),
    blend: str = "gaussian",
    weights: Tensor | None = None,
    places: Sequence[Size] | None = None,
    stage: str = "windows",
) -> Generator[Progress, None, Tensor]:
    """Run a network over all windows of a volume.

    Use it as ``logits = yield from predict_windows(...)``.

    Parameters
    ----------
    call
        Takes (batch, c, z, y, x) and gives (batch, classes, z, y, x), for example a network.
    image
        (c, z, y, x).
    window
        Size (z, y, x) of a window; cut to the image where it is longer.
    overlap
        Share of a window that overlaps the next one, from 0 to below 1.
    batch
        Windows per call, mirrored ones among them.
    flips
        Axes of (c, z, y, x) to mirror; the outputs, mirrored back, are averaged. See `mirror_axes`.
    blend
        How much each voxel of a window counts, a key of `BLENDS`.
    weights
        The same as numbers, of the window's size.
    places
        Where windows start; every place once if None.
    stage
        The name in `Progress`.

    Yields
    ------
    Progress
        After every call of the network.

    Returns
    -------
    Tensor
        (classes, z, y, x) float32, where `image` is; on the CPU if the memory there is short.

    Raises
    ------
    InvalidRecipe
        If window, overlap, batch or blend make no sense.
    """
    size = (image.shape[1], image.shape[2], image.shape[3])
    if len(window) != 3 or min(window) < 1 or not 0 <= overlap < 1 or batch < 1:
        raise InvalidRecipe(
            f"A window is three positive sizes, its overlap 0 to below 1 and its batch positive; not {tuple(window)}, "
            f"{overlap} and {batch}."
        )
    if blend not in BLENDS:
        raise InvalidRecipe(f"Windows are blended by {' or '.join(BLENDS)}, not by {blend!r}.")
    seen = _cut(window, size)
    if places is None:
        places = window_starts(size, seen, [max(1, int(w * (1 - overlap))) for w in window])
    if weights is None:
        weights = BLENDS[blend](seen)
    turns = list(itertools.product(flips, places))
    groups = [turns[i : i + batch] for i in range(0, len(turns), batch)]
    ask = _AskOnce(call)
    total = covered = torch.zeros(())
    for done, group in enumerate(groups, 1):
        boxes = [_box(_mirror(place, axes, size, seen), seen) for axes, place in group]
        windows = [_flip(image[(slice(None), *box)], axes) for box, (axes, _) in zip(boxes, group, strict=True)]
        answers = ask(windows)
        if total.ndim == 0:
            # Only now: what the network itself needs is held already, and the classes are known.
            weights = weights.to(_gathering(image.device, size, len(answers[0])), torch.float32)
            covered = _sum_weights(size, places, weights).mul_(len(flips))
            total = torch.zeros(len(answers[0]), *size, device=weights.device)
        for box, (axes, place), one in zip(boxes, group, answers, strict=True):
            share = weights / covered[_box(place, seen)]
            total[(slice(None), *box)] += _flip(one.to(weights.device) * share, axes)
        yield Progress(stage, done, len(groups))
    return total


class _AskOnce:
    """Calls a network with a batch of windows (c, z, y, x), but once only with those whose voxels are all equal."""

    def __init__(self, call: Callable[[Tensor], Tensor]) -> None:
        self._call = call
        self._value: tuple[float, ...] | None = None
        self._answer = torch.zeros(())

    def __call__(self, windows: Sequence[Tensor]) -> list[Tensor]:
        """Return the output for each window."""
        values = [constant_value(window) for window in windows]
        known = [value is not None and value in (self._value, *values[:i]) for i, value in enumerate(values)]
        new = [window for window, is_known in zip(windows, known, strict=True) if not is_known]
        computed = iter(self._call(torch.stack(new))) if new else iter(())
        answers = {} if self._value is None else {self._value: self._answer}
        found = []
        for value, is_known in zip(values, known, strict=True):
            one = answers[value] if is_known else next(computed)  # type: ignore[index]
            if value is not None:
                answers[value] = one
                if not is_known and one.numel() * one.element_size() <= KEPT_BYTES:
                    self._value, self._answer = value, one.clone()
            found.append(one)
        return found


def constant_value(window: Tensor) -> tuple[float, ...] | None:
    """Return the value of each channel of a window (c, z, y, x) in which all voxels are equal; None in others."""
    first = window[:, :1, :1, :1]
    if not torch.equal(window[:, -1, -1, -1], first.flatten()) or not bool((window == first).all()):
        return None
    return tuple(first.flatten().tolist())


def _flip(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    return x.flip(axes) if axes else x


def _mirror(place: Size, axes: tuple[int, ...], size: Size, window: Size) -> Size:
    """Return where a window of a mirrored image starts in the image itself."""
    z, y, x = (
        n - first - w if axis in axes else first
        for axis, (first, n, w) in enumerate(zip(place, size, window, strict=True), 1)
    )
    return (z, y, x)


def _sum_weights(size: Size, places: Sequence[Size], weights: Tensor) -> Tensor:
    """Add up the weights of all windows."""
    seen, covered = _cut(weights.shape, size), torch.zeros(size, device=weights.device)
    for place in places:
        covered[_box(place, seen)] += weights
    return covered


def _gathering(device: torch.device, size: Size, classes: int) -> torch.device:
    """Choose where the sum over the windows is kept: on the device if there is room, else on the CPU."""
    free = free_memory(device)
    short = free is not None and 4 * (classes + 1) * math.prod(size) > _SHARE * free
    return torch.device("cpu") if short else device


def free_memory(device: torch.device) -> int | None:
    """Return the bytes that can still be had on a GPU, within the limit of the run; None on other devices."""
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    allowed = torch.cuda.get_per_process_memory_fraction(device) * total - torch.cuda.memory_reserved(device)
    return int(min(free, allowed))


def window_starts(
    size: Sequence[int], window: Sequence[int], step: Sequence[int], *, repeat: bool = False
) -> list[Size]:
    """Return where windows start along (z, y, x): every `step`, the last one flush with the end.

    With `repeat`, the last one comes as often as the published code takes it, which costs time and gives it more weight
    than the others.
    """
    window = _cut(window, size)
    along = [[min(i, n - w) for i in range(0, n, s)] for n, w, s in zip(size, window, step, strict=True)]
    z, y, x = along if repeat else (list(dict.fromkeys(starts)) for starts in along)
    return list(itertools.product(z, y, x))


def mirror_axes(axes: str) -> tuple[tuple[int, ...], ...]:
    """Return every combination of mirrored axes out of ``"zyx"``, none first; `InvalidRecipe` if it is another text."""
    if set(axes) - set("zyx") or len(set(axes)) < len(axes):
        raise InvalidRecipe(f"Axes to flip are made of z, y and x, each at most once; not {axes!r}.")
    numbers = ["czyx".index(axis) for axis in axes]
    return tuple(itertools.chain.from_iterable(itertools.combinations(numbers, n) for n in range(len(axes) + 1)))


def gaussian_importance(window: Sequence[int]) -> Tensor:
    """Return a Gaussian around the middle of a window, 1/8 of the window wide, nowhere below 1/1000."""
    along = [torch.arange(n, dtype=torch.float64) - (n - 1) / 2 for n in window]
    z, y, x = (torch.exp(-0.5 * (mm / (n / 8)) ** 2) for mm, n in zip(along, window, strict=True))
    return (z[:, None, None] * y[:, None] * x).clamp_min(1e-3).float()


BLENDS: dict[str, Callable[[Sequence[int]], Tensor]] = {
    "gaussian": gaussian_importance,
    "constant": lambda window: torch.ones(tuple(window)),
}
"""How much the voxels of a window count, by name."""


def _cut(window: Sequence[int], size: Sequence[int]) -> Size:
    z, y, x = (min(w, n) for w, n in zip(window, size, strict=True))
    return (z, y, x)


def _box(place: Size, size: Size) -> tuple[slice, slice, slice]:
    z, y, x = (slice(first, first + n) for first, n in zip(place, size, strict=True))
    return (z, y, x)

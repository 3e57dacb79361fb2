"""New classes on a trained network: the logits of the previous classes stay exactly as they were.

Which axes of which tensors hold classes is found by building the network twice, with one class more the second time,
so that any network of the registry can grow, whatever its layers are called. The row of a new class is the
background's with a lower bias: it starts as a small share of the background, so that the labels are those of
before until training says otherwise (after Cermelli et al., Modeling the background, CVPR 2020), and no softmax is
saturated against it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from napari_fmseg.core.errors import InvalidRecipe
from napari_fmseg.models.card import NetSpec
from napari_fmseg.nets import build

__all__ = ["NEW_SHARE", "ExtendedClasses", "class_axes", "extend_classes"]

NEW_SHARE = 0.01
"""Share of the background's probability that all new classes together start with."""

_GAIN = 8.0

Axis = tuple[int, int]
"""An axis of a tensor that holds classes, and how many channels of the image stand before them."""


@dataclass(frozen=True)
class ExtendedClasses:
    """Which tensors of a network were taken over, extended or initialised anew.

    Attributes
    ----------
    taken
        Tensors that are the old ones.
    grown
        Tensors that hold the old ones' rows, and new rows beside them.
    fresh
        Tensors that were drawn anew.
    added, dropped
        Classes that the old network did not have, and those that the new one does not have.
    """

    taken: tuple[str, ...]
    grown: tuple[str, ...]
    fresh: tuple[str, ...]
    added: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()

    def summary(self, stage: str, parent: str) -> str:
        """Return a sentence that says which weights were taken and which are new."""
        parts = [f"{stage}: {len(self.taken)} tensors were taken from {parent} as they are"]
        if self.grown:
            new = f" for {', '.join(self.added)}" if self.added else ""
            parts.append(f"{len(self.grown)} were given rows{new} ({_some(self.grown)})")
        if self.fresh:
            parts.append(f"{len(self.fresh)} were drawn anew and must be learned ({_some(self.fresh)})")
        if self.dropped:
            parts.append(f"it no longer tells {', '.join(self.dropped)}")
        return "; ".join(parts) + "."


def _some(keys: Sequence[str]) -> str:
    return ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")


def class_axes(spec: NetSpec) -> dict[str, tuple[Axis, ...]]:
    """Find which axes of a network's tensors hold classes.

    Returns
    -------
    dict
        For every tensor that has such axes: the axis and its offset.
    """
    n = int(spec.kwargs["n_classes"])
    one, more = (_shapes(spec, classes) for classes in (n, n + 1))
    found: dict[str, tuple[Axis, ...]] = {}
    for key, shape in one.items():
        other = more.get(key, ())
        if len(other) == len(shape) and other != shape:
            pairs = enumerate(zip(shape, other, strict=True))
            found[key] = tuple((axis, have - n * (then - have)) for axis, (have, then) in pairs if have != then)
    return found


@torch.no_grad()
def extend_classes(
    spec: NetSpec, net: nn.Module, labels: Mapping[int, str], wanted: Sequence[str]
) -> tuple[nn.Module, NetSpec, ExtendedClasses]:
    """Make the network with other classes, in another order if need be.

    Parameters
    ----------
    spec, net
        The network and what built it.
    labels
        Its classes by label.
    wanted
        Class names of the network to make, in the order of its labels 1, 2...

    Returns
    -------
    tuple
        The new network on the device of the old one, what builds it, and what became of the tensors. If no class is
        shared, the layers that give classes are drawn anew.

    Raises
    ------
    InvalidRecipe
        If the network does not say how many classes it has.
    """
    if "n_classes" not in spec.kwargs:
        raise InvalidRecipe(f"{spec.network} does not say how many classes it has, so it cannot be given others.")
    old_of = {name: label for label, name in labels.items()}
    source: list[int | None] = [0, *(old_of.get(name) for name in wanted)]
    added = tuple(name for name in wanted if name not in old_of)
    shared = len(added) < len(wanted)
    kwargs: dict[str, Any] = {**spec.kwargs, "n_classes": len(source)}
    edge = spec.network == "edgenet" and spec.kwargs.get("variant", "v1") == "v1"
    if edge and shared:
        kwargs["hidden"] = int(spec.kwargs.get("hidden", 8)) + len(added)
    grown_spec = NetSpec(spec.network, kwargs)
    old, new = net.state_dict(), build(spec.network, **kwargs)
    state, axes = new.state_dict(), class_axes(spec)
    taken: list[str] = []
    changed: list[str] = []
    fresh: list[str] = []
    same = source == list(range(1 + max(labels, default=0)))
    if edge and shared and added:
        _let_through(state, old, source, int(spec.kwargs.get("in_channels", 1)))
        changed = list(state)
    for key, own in state.items():
        if key in changed:
            continue
        if key in old and (same or key not in axes) and own.shape == old[key].shape:
            state[key] = old[key].clone()
            taken.append(key)
        elif key in old and key in axes and shared and all(_plain(axis, spec) for axis in axes[key]):
            state[key] = _rows(key, old[key], axes[key], source, old)
            changed.append(key)
        else:
            fresh.append(key)
    new.load_state_dict(state)
    place = next(iter(old.values())).device
    dropped = tuple(name for name in labels.values() if name not in wanted)
    return new.to(place), grown_spec, ExtendedClasses(tuple(taken), tuple(changed), tuple(fresh), added, dropped)


def _shapes(spec: NetSpec, n_classes: int) -> dict[str, tuple[int, ...]]:
    kwargs = {**spec.kwargs, "n_classes": n_classes}
    try:
        with torch.device("meta"):  # shapes only: no memory, no random numbers
            net = build(spec.network, **kwargs)
    except RuntimeError:  # a network that computes while it is built
        net = build(spec.network, **kwargs)
    return {key: tuple(value.shape) for key, value in net.state_dict().items()}


def _plain(axis: Axis, spec: NetSpec) -> bool:
    """Return whether classes stand alone along an axis, or behind the channels of the image, as in EdgeNet."""
    _, offset = axis
    return offset in (0, int(spec.kwargs.get("in_channels", 1)))


def _rows(
    key: str, old: Tensor, axes: Sequence[Axis], source: Sequence[int | None], state: Mapping[str, Tensor]
) -> Tensor:
    """Carry the rows of known classes over; new ones are the background's as outputs and 0 as inputs."""
    out, n_old = old, None
    for axis, offset in axes:
        n_old = n_old or old.shape[axis] - offset
        is_input = axis > 0
        blocks = 1 if not is_input else max(1, _blocks(key, old.shape[axis] - offset, state))
        per_block = (old.shape[axis] - offset) // blocks
        picked = [out.narrow(axis, 0, offset)]
        for block in range(blocks):
            first = offset + block * per_block
            index = torch.tensor([first + (s or 0) for s in source], device=old.device)
            part = out.index_select(axis, index)
            if is_input:
                keep = torch.tensor([s is not None for s in source], device=old.device, dtype=old.dtype)
                part = part * keep.reshape([-1 if i == axis else 1 for i in range(old.ndim)])
            picked.append(part)
        out = torch.cat(picked, axis)
    if old.ndim == 1 and key.endswith("bias") and state[key.removesuffix("bias") + "weight"].ndim > 1:
        new = torch.tensor([s is None for s in source], device=old.device)
        out = out + new * math.log(NEW_SHARE / max(1, int(new.sum())))
    return out


def _blocks(key: str, length: int, state: Mapping[str, Tensor]) -> int:
    """Return how often the classes stand one behind the other along an input: four times in EdgeNet 2023's merging
    layers.
    """
    rows = len(state[key])
    return length // rows if key.startswith("merge_") else 1


def _let_through(state: dict[str, Tensor], old: Mapping[str, Tensor], source: Sequence[int | None], n: int) -> None:
    """Pass each new class of EdgeNet v1 a hidden channel of its own that hands its segmentation on.

    Old rows do not look at the new channels, so what they give is what they gave.
    """
    first, second = "fc.0", "fc.1"
    classes = [i for i, s in enumerate(source) if s is None]
    known = [i for i, s in enumerate(source) if s is not None]
    hidden = len(old[f"{first}.weight"])
    inner = torch.zeros_like(state[f"{first}.weight"])
    columns = [*range(n), *(n + i for i in known)]
    before = [*range(n), *(n + source[i] for i in known)]  # type: ignore[operator]
    inner[:hidden, columns] = old[f"{first}.weight"].to(inner)[:, before]
    bias = torch.zeros_like(state[f"{first}.bias"])
    bias[:hidden] = old[f"{first}.bias"]
    outer = torch.zeros_like(state[f"{second}.weight"])
    outer[:, :hidden] = old[f"{second}.weight"].to(outer)[[s or 0 for s in source]]
    last = old[f"{second}.bias"].to(outer)[[s or 0 for s in source]]
    for place, label in enumerate(classes):
        inner[hidden + place, n + label, 1, 1, 1] = 1
        outer[label, hidden + place, 1, 1, 1] = _GAIN
        last[label] += math.log(NEW_SHARE / len(classes))
    state.update({f"{first}.weight": inner, f"{first}.bias": bias, f"{second}.weight": outer, f"{second}.bias": last})

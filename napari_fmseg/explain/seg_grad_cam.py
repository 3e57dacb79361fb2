"""Seg-Grad-CAM: which places of the image led to a class, in any network."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from napari_fmseg.core.errors import GeometryMismatch, UnknownModel
from napari_fmseg.nets.layers.blocks import resize

__all__ = ["deepest_layer", "seg_grad_cam"]


def seg_grad_cam(
    net: nn.Module,
    *inputs: Tensor,
    channel: int,
    region: Tensor | None = None,
    layer: str | None = None,
    probabilities: bool = False,
) -> Tensor:
    """Compute how strongly each place led to a class (Vinogradova 2020).

    The channels of a layer are weighted by the mean gradient of the summed output in a region, added, and cut off at 0.
    The paper keeps what the channels show anywhere; ours is 0 outside the box of places with any gradient at all, since
    nothing there can have changed the answer.

    Parameters
    ----------
    net
        Any network of the registry, in evaluation mode.
    *inputs
        What it takes; the image (b, c, z, y, x) first.
    channel
        Of the output: the class that is explained.
    region
        (z, y, x), True where the class is explained; by default everywhere.
    layer
        Name of the layer as in `named_modules`; by default the deepest, see `deepest_layer`.
    probabilities
        The network gives probabilities, not logits. Their log odds are taken instead, since a probability near 1 hardly
        changes, whatever speaks for it.

    Returns
    -------
    Tensor
        (b, z, y, x) on the grid of the image, from 0 to 1; all 0 if there is no evidence for the class.

    Raises
    ------
    UnknownModel
        If there is no such layer or channel.
    GeometryMismatch
        If the region does not lie on the output.
    """
    name = deepest_layer(net, *inputs) if layer is None else layer
    parts = dict(net.named_modules())
    if name not in parts:
        raise UnknownModel(f"{type(net).__name__} has no layer {name!r}. It has: {', '.join(list(parts)[1:9])}, ...")
    caught: list[Tensor] = []

    def catch(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        # The gradient is needed from here on only, and then also where all weights are frozen.
        caught.append(output.detach().requires_grad_())
        return caught[-1].clone()  # some networks write into their maps

    hook = parts[name].register_forward_hook(catch)
    try:
        with torch.enable_grad():
            output = net(*inputs)
            output = output if isinstance(output, Tensor) else output[0]
            if probabilities:
                output = torch.logit(output, torch.finfo(output.dtype).eps)
            spoken = _score(output, channel, region)
            (gradient,) = torch.autograd.grad(spoken, caught[-1])
    finally:
        hook.remove()
    with torch.no_grad():
        shares = gradient.mean((2, 3, 4), keepdim=True)
        places = (shares * caught[-1]).sum(1, keepdim=True).clamp_min(0)  # (b, 1, z', y', x')
        places = places * _mark_reach(gradient)
        places = resize(places.float(), inputs[0].shape[2:], align_corners=False)[:, 0]
        most = places.amax((1, 2, 3), keepdim=True)
        return torch.where(most > 0, places / most.clamp_min(torch.finfo(places.dtype).tiny), places)


@torch.no_grad()
def deepest_layer(net: nn.Module, *inputs: Tensor) -> str:
    """Name the last layer whose map is smallest, with two voxels or more: what Grad-CAM takes by default."""
    seen: list[tuple[int, str]] = []

    def note(name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.ndim == 5:
                voxels = output.shape[2] * output.shape[3] * output.shape[4]
                seen.append((voxels, name))

        return hook

    hooks = [part.register_forward_hook(note(name)) for name, part in net.named_modules() if name]
    try:
        net(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    large = [entry for entry in seen if entry[0] > 1]
    if not large:
        raise UnknownModel(f"{type(net).__name__} has no layer with a map of the image. Name a layer.")
    smallest = min(voxels for voxels, _ in large)
    return [name for voxels, name in large if voxels == smallest][-1]


def _mark_reach(gradient: Tensor) -> Tensor:
    """Mark the box of the places (b, 1, z, y, x) that a gradient (b, c, z, y, x) comes from."""
    any_there = (gradient != 0).any(1, keepdim=True)
    box = torch.ones_like(any_there)
    for axis in (2, 3, 4):
        others = [a for a in (2, 3, 4) if a != axis]
        along = any_there.amax(others, keepdim=True).int()  # (b, 1) and one axis
        box = box & (along.cummax(axis).values.bool() & along.flip(axis).cummax(axis).values.flip(axis).bool())
    return box


def _score(output: Tensor, channel: int, region: Tensor | None) -> Tensor:
    if not 0 <= channel < output.shape[1]:
        raise UnknownModel(f"The output has channels 0 to {output.shape[1] - 1}, not {channel}.")
    target = output[:, channel]
    if region is None:
        return target.sum()
    if region.shape != target.shape[1:]:
        raise GeometryMismatch(
            f"The region has {tuple(region.shape)} voxels and the output {tuple(target.shape[1:])}. "
            "Resample the region to the output's grid."
        )
    return (target * region.to(target)).sum()

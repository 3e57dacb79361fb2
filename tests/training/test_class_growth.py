"""New classes on a trained network: the old logits stay, in every network, whatever the order of the classes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from napari_fmseg.core.errors import InvalidRecipe
from napari_fmseg.models.card import NetSpec
from napari_fmseg.nets import build
from napari_fmseg.training.class_growth import NEW_SHARE, class_axes, extend_classes

OLD = {1: "anterior", 2: "posterior"}
WANTED = ("atrium", "posterior", "anterior", "ventricle")
AT = {0: 0, 1: 3, 2: 2}  # where the old classes stand in the new network
SMALL: dict[str, dict[str, Any]] = {
    "snet": {"width": 4},
    "attnnet": {"width": 4},
    "edgenet": {},
    "fmunet": {"widths": [4, 4, 8, 8, 8]},
    "pctnet": {"widths": [4, 4, 8, 8, 16], "heads": [2, 2, 2], "windows": [2, 2, 2], "depths": [1, 1, 1]},
}


def spec_of(name: str, **kwargs: Any) -> NetSpec:
    return NetSpec(name, {"in_channels": 1, "n_classes": 3, **SMALL[name], **kwargs})


def trained(spec: NetSpec) -> nn.Module:
    net = build(spec.network, **spec.kwargs)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return net.eval()


def inputs_of(name: str, n_classes: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    x, s = (torch.rand(1, c, 32, 32, 32, generator=generator) for c in (1, 3))
    if name == "attnnet":
        return [x, s[:, :1]]
    if name == "edgenet" and n_classes == 3:
        return [x, s]
    if name == "edgenet":
        more = torch.rand(1, n_classes, 32, 32, 32, generator=generator)  # the new classes are seen somewhere, too
        for old, new in AT.items():
            more[:, new] = s[:, old]
        return [x, more]
    return [x]


def logits_of(net: nn.Module, name: str, n_classes: int) -> list[torch.Tensor]:
    """What every layer gives that gives classes."""
    seen: list[torch.Tensor] = []
    hooks = [
        part.register_forward_hook(lambda _m, _i, out: seen.append(out))
        for part in net.modules()
        if isinstance(part, nn.Conv3d) and part.out_channels == n_classes and part.out_channels != part.in_channels
    ]
    with torch.no_grad():
        (net.training_heads if hasattr(net, "training_heads") else net)(*inputs_of(name, n_classes))  # type: ignore[operator]
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("name", SMALL)
def test_the_logits_of_old_classes_stay_when_classes_are_added_and_the_order_changes(name: str) -> None:
    spec = spec_of(name)
    old = trained(spec)
    new, grown_spec, how = extend_classes(spec, old, OLD, WANTED)
    before, after = logits_of(old, name, 3), logits_of(new.eval(), name, 5)
    assert len(before) == len(after) >= 1
    for a, b in zip(before, after, strict=True):
        torch.testing.assert_close(b[:, list(AT.values())], a[:, list(AT)], rtol=1e-5, atol=1e-5)
    assert grown_spec.kwargs["n_classes"] == 5
    assert how.added == ("atrium", "ventricle")
    assert not how.dropped
    own = set(new.state_dict())
    assert set(how.taken) | set(how.grown) | set(how.fresh) == own
    assert not how.fresh
    for key in how.taken:
        assert torch.equal(new.state_dict()[key], old.state_dict()[key])


@pytest.mark.parametrize("name", ["snet", "attnnet", "fmunet", "pctnet"])
def test_before_training_the_labels_are_those_of_before_and_new_classes_a_share_of_the_background(name: str) -> None:
    spec = spec_of(name)
    old = trained(spec)
    new, _, _ = extend_classes(spec, old, OLD, WANTED)
    with torch.no_grad():
        a, b = old(*inputs_of(name, 3)), new.eval()(*inputs_of(name, 5))
    if name in ("fmunet", "pctnet"):
        a, b = a.softmax(1), b.softmax(1)
    back = torch.zeros(5, dtype=torch.long)
    for o, n in AT.items():
        back[n] = o
    same = (back[b.argmax(1)] == a.argmax(1)).float().mean()
    # The phased networks blend probabilities after the softmax, where the share of the new classes may tip a tie.
    assert same > 0.99 if name in ("snet", "attnnet") else same == 1
    assert (b[:, [1, 4]].sum(1) <= 1.001 * NEW_SHARE * (b[:, 0] + 1e-6) + 1e-4).all()


def test_an_edge_network_hands_a_new_class_through() -> None:
    spec = spec_of("edgenet")
    old = build("edgenet", **spec.kwargs)
    old.init_as_identity()  # type: ignore[operator]
    new, _, _ = extend_classes(spec, old, OLD, WANTED)
    s = torch.zeros(1, 5, 12, 12, 12)
    s[:, 0, :6], s[:, 4, 6:] = 1, 1
    with torch.no_grad():
        found = new.eval()(torch.zeros(1, 1, 12, 12, 12), s).argmax(1)
    assert (found[:, 8:, 2:-2, 2:-2] == 4).all()
    assert (found[:, 2:4, 2:-2, 2:-2] == 0).all()


def test_without_a_shared_class_the_layers_of_classes_are_drawn_anew_and_all_others_are_taken() -> None:
    spec = spec_of("fmunet")
    old = trained(spec)
    new, _, how = extend_classes(spec, old, {1: "mixed 1", 2: "mixed 2"}, ("liver", "spleen"))
    heads = {f"out_layers.{i}.2.{part}" for i in range(4) for part in ("weight", "bias")}
    assert set(how.fresh) == set(class_axes(spec)) == heads
    assert "drawn anew" in how.summary("net", "volf")
    assert all(torch.equal(new.state_dict()[k], old.state_dict()[k]) for k in how.taken)


def test_classes_can_be_left_out() -> None:
    spec = spec_of("snet")
    old = trained(spec)
    new, _, how = extend_classes(spec, old, OLD, ("posterior",))
    assert how.dropped == ("anterior",)
    assert torch.equal(new.state_dict()["maps.0.0.weight"], old.state_dict()["maps.0.0.weight"][[0, 2]])


def test_the_same_classes_are_taken_whole() -> None:
    spec = spec_of("edgenet", variant="v2")
    old = trained(spec)
    new, grown, how = extend_classes(spec, old, OLD, tuple(OLD.values()))
    assert not how.grown
    assert grown.kwargs == spec.kwargs
    assert all(torch.equal(new.state_dict()[k], v) for k, v in old.state_dict().items())


def test_the_pyramid_of_edge_v2_keeps_its_classes() -> None:
    spec = spec_of("edgenet", variant="v2", width=4)
    old = trained(spec)
    new, _, how = extend_classes(spec, old, OLD, WANTED)
    assert not how.fresh
    weight, before = new.state_dict()["merge_seg.0.weight"], old.state_dict()["merge_seg.0.weight"]
    assert torch.equal(weight[3, 0], before[1, 0])  # the image
    for block in range(4):
        assert torch.equal(weight[3, 1 + 5 * block + 2], before[1, 1 + 3 * block + 2])  # posterior as seen by anterior
        assert (weight[3, [1 + 5 * block + 1, 1 + 5 * block + 4]] == 0).all()


def test_a_network_that_does_not_say_its_classes_is_refused() -> None:
    with pytest.raises(InvalidRecipe, match="classes"):
        extend_classes(NetSpec("snet", {}), build("snet"), OLD, WANTED)

"""What happens when a device's memory does not suffice."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from napari_fmseg.errors import DeviceMemory, DeviceUnavailable
from napari_fmseg.nets import engine as nets_engine
from napari_fmseg.pipelines.running import Engine

ELSEWHERE = torch.device("meta")  # a device that every machine has and that is not the CPU
X = torch.rand(1, 1, 4, 5, 6, generator=torch.Generator().manual_seed(0))


class Limited(nn.Module):
    """A convolution that fits only into the memory of some devices."""

    def __init__(self, *fits: str, message: str = "") -> None:
        super().__init__()
        self.conv = nn.Conv3d(1, 2, 3, padding=1).requires_grad_(False)
        self.fits, self.message = fits, message

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.device.type not in self.fits:
            raise RuntimeError(self.message) if self.message else torch.OutOfMemoryError("tried to allocate 80 GiB")
        return self.conv(x).softmax(1)


def test_a_full_device_hands_over_to_the_cpu_and_says_so() -> None:
    net, engine = Limited("cpu"), Engine(ELSEWHERE, "float32")
    torch.testing.assert_close(engine(net, X), net(X))
    assert engine.device.type == "cpu"
    (note,) = engine.notes
    assert "meta" in note
    assert "4 x 5 x 6" in note
    assert "CPU" in note


def test_after_the_handover_everything_stays_on_the_cpu() -> None:
    net, engine = Limited("cpu"), Engine(ELSEWHERE, "float32")
    engine(net, X)
    engine.notes.clear()
    engine(net, X)
    assert engine.notes == []


@pytest.mark.parametrize("half_is_right", [True, False])
def test_the_handover_never_takes_a_precision_that_is_not_right(
    half_is_right: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nets_engine, "_best_half", lambda device: "bfloat16")
    engine = Engine(ELSEWHERE, "auto", half_is_right=half_is_right)
    engine(Limited("cpu"), X)
    assert engine.precision == ("bfloat16" if half_is_right else "float32")


def test_the_handover_keeps_the_precision_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nets_engine, "_best_half", lambda device: "bfloat16")
    engine = Engine(ELSEWHERE, "float32")
    engine(Limited("cpu"), X)
    assert engine.precision == "float32"


@pytest.mark.parametrize(
    "message", ["", "DefaultCPUAllocator: not enough memory", "DefaultCPUAllocator: can't allocate memory"]
)
@pytest.mark.parametrize("device", [torch.device("cpu"), ELSEWHERE])
def test_no_memory_anywhere_is_an_error_that_says_what_to_do(device: torch.device, message: str) -> None:
    with pytest.raises(DeviceMemory, match=r"4 x 5 x 6.*smaller grid"):
        Engine(device, "float32")(Limited(message=message), X)


def test_another_failure_of_the_network_is_not_taken_for_memory() -> None:
    with pytest.raises(RuntimeError, match="shapes"):
        Engine(torch.device("cpu"), "float32")(Limited(message="shapes do not fit"), X)


def test_the_result_carries_no_gradient() -> None:
    net = nn.Conv3d(1, 2, 1)
    assert not Engine(torch.device("cpu"), "float32")(net, X).requires_grad


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(DeviceUnavailable, match="float8"):
        Engine(torch.device("cpu"), "float8")

"""What happens when a device's memory does not suffice."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from napari_fmseg import nets
from napari_fmseg.core.errors import DeviceMemory, DeviceUnavailable
from napari_fmseg.core.processes import peak_bytes
from napari_fmseg.nets.runtime import device as nets_engine
from napari_fmseg.pipelines import executor
from napari_fmseg.pipelines.executor import InferenceRunner, MemoryLimit

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
    net, engine = Limited("cpu"), InferenceRunner(ELSEWHERE, "float32")
    torch.testing.assert_close(engine(net, X), net(X))
    assert engine.device.type == "cpu"
    (note,) = engine.notes
    assert "meta" in note
    assert "4 x 5 x 6" in note
    assert "CPU" in note


def test_after_the_handover_everything_stays_on_the_cpu() -> None:
    net, engine = Limited("cpu"), InferenceRunner(ELSEWHERE, "float32")
    engine(net, X)
    engine.notes.clear()
    engine(net, X)
    assert engine.notes == []


@pytest.mark.parametrize(("proven", "precision"), [(True, "bfloat16"), (None, "float32"), (False, "float32")])
def test_the_handover_takes_half_precision_only_where_it_is_proven_right(
    proven: bool | None, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nets_engine, "_best_half", lambda device: "bfloat16")
    engine = InferenceRunner(ELSEWHERE, "auto", half_precision_ok=proven)
    engine(Limited("cpu"), X)
    assert engine.precision == precision


def test_the_handover_keeps_the_precision_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nets_engine, "_best_half", lambda device: "bfloat16")
    engine = InferenceRunner(ELSEWHERE, "float32")
    engine(Limited("cpu"), X)
    assert engine.precision == "float32"


@pytest.mark.parametrize(
    "message", ["", "DefaultCPUAllocator: not enough memory", "DefaultCPUAllocator: can't allocate memory"]
)
@pytest.mark.parametrize("device", [torch.device("cpu"), ELSEWHERE])
def test_no_memory_anywhere_is_an_error_that_says_what_to_do(device: torch.device, message: str) -> None:
    with pytest.raises(DeviceMemory, match=r"4 x 5 x 6.*smaller grid"):
        InferenceRunner(device, "float32")(Limited(message=message), X)


def test_another_failure_of_the_network_is_not_taken_for_memory() -> None:
    with pytest.raises(RuntimeError, match="shapes"):
        InferenceRunner(torch.device("cpu"), "float32")(Limited(message="shapes do not fit"), X)


def test_the_result_carries_no_gradient() -> None:
    net = nn.Conv3d(1, 2, 1)
    assert not InferenceRunner(torch.device("cpu"), "float32")(net, X).requires_grad


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(DeviceUnavailable, match="float8"):
        InferenceRunner(torch.device("cpu"), "float8")


class Narrow(nn.Module):
    """A network that fits onto the device in 16 bit only."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(1, 2, 1).requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.dtype == torch.float32 and x.device.type != "cpu":
            raise torch.OutOfMemoryError("tried to allocate 80 GiB")
        return torch.zeros(x.shape, dtype=x.dtype)


def test_before_the_cpu_comes_half_precision_and_the_user_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nets_engine, "_best_half", lambda device: "bfloat16")
    engine = InferenceRunner(ELSEWHERE, "auto", half_precision_ok=False)
    assert engine(Narrow(), X).dtype == torch.bfloat16
    assert engine.device == ELSEWHERE
    (note,) = engine.notes
    assert "16 bit" in note
    assert "may differ" in note


def test_float32_that_was_asked_for_goes_to_the_cpu_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nets_engine, "_best_half", lambda device: "bfloat16")
    engine = InferenceRunner(ELSEWHERE, "float32")
    assert engine(Narrow(), X).dtype == torch.float32
    assert engine.device.type == "cpu"


def test_slabs_come_before_half_precision_and_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def refuse(net: nn.Module, **how: object) -> object:
        tried.append((how["device"], how["precision"], how["low_memory"]))
        if len(tried) < 4:
            raise torch.OutOfMemoryError("full")
        return net

    monkeypatch.setattr(nets_engine, "_best_half", lambda device: "bfloat16" if device == ELSEWHERE else "float32")
    monkeypatch.setattr(executor, "prepare", refuse)
    net = nets.build("baseunet", channels=(2, 2, 2, 2, 4)).eval()
    engine = InferenceRunner(ELSEWHERE, "auto", half_precision_ok=False)
    engine(net, torch.zeros(1, 1, 16, 16, 32))
    assert tried == [
        (ELSEWHERE, "float32", False), (ELSEWHERE, "float32", True), (ELSEWHERE, "bfloat16", True),
        (torch.device("cpu"), "float32", True),
    ]  # fmt: skip
    assert len(engine.notes) == 3


def test_a_limit_that_was_exceeded_is_told_with_both_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = iter((1_000_000_000, 3_200_000_000))
    monkeypatch.setattr(executor, "peak_bytes", lambda: next(peaks))
    with MemoryLimit(torch.device("cpu"), 2.5) as limit:
        (said,) = limit.warnings()
    assert "3.2 GB" in said
    assert "2.5 GB" in said


def test_what_was_held_before_the_run_is_not_its_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "peak_bytes", lambda: 5_000_000_000)
    with MemoryLimit(torch.device("cpu"), 2.5) as limit:
        assert list(limit.warnings()) == []


def test_peak_is_not_that_of_the_process_that_started_this_one() -> None:
    child = "from napari_fmseg.core.processes import peak_bytes; print(peak_bytes())"
    parent = (
        "import subprocess, sys; block = bytearray(b'x') * 600_000_000; "
        f"print(subprocess.run([sys.executable, '-c', {child!r}], capture_output=True, text=True, check=True).stdout)"
    )
    told = subprocess.run([sys.executable, "-c", parent], capture_output=True, text=True, check=True).stdout
    assert 5e6 < int(told) < 400e6


def test_peak_is_that_of_the_process() -> None:
    before = peak_bytes()
    block = bytearray(200_000_000)
    block[:: 1 << 12] = b"x" * len(block[:: 1 << 12])
    assert peak_bytes() >= before
    assert peak_bytes() > 200_000_000

"""What the benchmarks share: forms in processes of their own that take turns, and the file of the results."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from napari_fmseg.core.allocator import own_process
from napari_fmseg.core.processes import environment, peak_bytes
from napari_fmseg.evaluation.machine import machine_facts

RESULTS = Path(__file__).parent / "results"


def parser_for(doc: str | None, name: str, *, with_device: bool = False) -> argparse.ArgumentParser:
    """Return a parser with the options that every benchmark has, and ``--device`` where one can be chosen."""
    parser = argparse.ArgumentParser(prog=f"benchmarks {name}", description=doc, formatter_class=_AsWritten)
    parser.add_argument("--rounds", type=int, default=3, help="how often everything runs after one run that warms up")
    parser.add_argument("--out", type=Path, default=RESULTS / f"{name}.json", help="the file of the results")
    if with_device:
        parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="cpu, cuda or cuda:1")
    return parser


def wait_for(device: torch.device) -> None:
    """Return when a graphics card has done what it was asked to; at once for a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def gpu_peak_mb() -> dict[str, int]:
    """Return the most memory that this process had on a graphics card; nothing where it used none."""
    if not torch.cuda.is_initialized():
        return {}
    return {"gpu_peak_mb": round(torch.cuda.max_memory_allocated() / 1e6)}


class _AsWritten(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    pass


def keep(out: Path, name: str, settings: argparse.Namespace, results: Mapping[str, Any]) -> None:
    """Write what is known so far, with the machine; a file that is whole at any moment."""
    asked = {k: v for k, v in vars(settings).items() if k != "out" and v is not None and not callable(v)}
    machine = machine_facts(asked.get("device"), packages=("nibabel", "pydicom", "monai", "openvino"))
    machine["threads"] = asked.get("threads", machine["threads"])  # those of the measured processes
    table = {
        "benchmark": name,
        "machine": machine,
        "settings": asked,
        **results,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = out.with_suffix(".part")
    beside.write_text(json.dumps(table, indent=1, default=str) + "\n", encoding="utf-8")
    os.replace(beside, out)


def summarise(values: Sequence[float], digits: int = 4) -> dict[str, float]:
    """Return median, least and most of some seconds."""
    return {
        "median": round(statistics.median(values), digits),
        "least": round(min(values), digits),
        "most": round(max(values), digits),
    }


class Form:
    """One way to do a piece of work, in a process of its own, which works when it is asked to.

    Parameters
    ----------
    name
        How the results call it.
    command
        What starts the process: the words after Python; it calls `serve`.
    variables
        Further environment variables.
    """

    def __init__(self, name: str, command: Sequence[str], variables: Mapping[str, str] | None = None) -> None:
        self.name = name
        self._process = subprocess.Popen(
            [sys.executable, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**environment(), **(variables or {})},
        )  # fmt: skip
        self.facts = self._answer()
        self.wall: list[float] = []
        self.processor: list[float] = []
        self.peak_mb = 0.0
        self.gpu: dict[str, int] = {}

    def run(self, *, count: bool = True) -> float:
        """Work once; return the seconds of the processor. What warms up does not count."""
        told = self._ask("run")
        if count:
            self.wall.append(told["wall"])
            self.processor.append(told["processor"])
        self.peak_mb = told["peak_mb"]
        self.gpu = {name: value for name, value in told.items() if name == "gpu_peak_mb"}
        return float(told["processor"])

    def save(self, path: Path) -> None:
        """Have the result of the last run written to a file of numpy."""
        self._ask(f"save {path}")

    def end(self) -> None:
        """Close its input, whereupon it ends."""
        self._process.communicate()

    def row(self) -> dict[str, Any]:
        """Return what it took."""
        return {
            "seconds": summarise(self.wall),
            "processor_seconds": summarise(self.processor),
            "peak_mb": round(self.peak_mb),
            **self.gpu,
            **self.facts,
        }

    def _ask(self, words: str) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(words + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended early; its messages stand above.")
        return json.loads(line)


def serve(work: Callable[[], Any], save: Callable[[Any, Path], None], facts: Mapping[str, Any] | None = None) -> None:
    """Be a form: answer each line of stdin with one line of JSON.

    `save` writes what `work` returned. The peak memory is told as it is and not as it was before: `base_mb` is what
    the process held when it was ready.
    """
    out: Any = None
    _tell({"base_mb": round(peak_bytes() / 1e6), **(facts or {})})
    for line in sys.stdin:
        word, _, path = line.strip().partition(" ")
        if word == "save":
            save(out, Path(path))
            _tell({})
            continue
        out = None
        wall, processor = time.perf_counter(), time.process_time()
        out = work()
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        _tell({"wall": wall, "processor": processor, "peak_mb": peak_bytes() / 1e6, **gpu_peak_mb()})


def _tell(facts: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


def take_turns(forms: Sequence[Form], rounds: int, *, least_seconds: float = 0.0) -> None:
    """Run all forms in turns, so that a busy machine slows all of them; the first round does not count.

    Slow ones end after half of the rounds, where these took longer than `least_seconds` of the processor.
    """
    spent = 0.0
    for number in range(rounds + 1):
        if least_seconds and number > max(1, rounds // 2) and spent > least_seconds:
            return
        spent += sum(form.run(count=number > 0) for form in forms)


COMMANDS_VARIABLES = {"OMP_WAIT_POLICY": "PASSIVE", "THP_MEM_ALLOC_ENABLE": "1"}
"""What the command line sets before torch is loaded: threads sleep while they wait, and memory comes in large pages."""


def be_like_the_command() -> None:
    """Allow this process what the command line allows itself: to keep freed memory."""
    own_process()

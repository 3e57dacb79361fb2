"""`fmseg cluster`: batch files for a cluster."""

from __future__ import annotations

import functools
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro
from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes

from napari_fmseg.cli.console import note, say
from napari_fmseg.cli.evaluate import evaluate
from napari_fmseg.cli.exit_codes import _Usage
from napari_fmseg.cli.segment import segment
from napari_fmseg.cli.train import pretrain, train
from napari_fmseg.core.atomic_write import atomic_write
from napari_fmseg.core.errors import FmsegError
from napari_fmseg.workers.slurm import SlurmOptions, sbatch_text

__all__ = ["CLUSTER_COMMANDS", "SHARED_COMMANDS", "run_cluster", "split_slurm"]

SHARED_COMMANDS: dict[str, Callable[..., int]] = {
    "segment": segment,
    "evaluate": evaluate,
    "train": train,
    "pretrain": pretrain,
}
"""The commands that a cluster can run; without a name it is `segment`."""


_USAGE = """usage: fmseg cluster slurm [-h] COMMAND... [OPTIONS]

Write a batch file for SLURM. `fmseg cluster slurm --help` has the options."""


@dataclass(frozen=True)
class Slurm:
    """Write a batch file for SLURM that runs a command on several nodes.

    Besides the options below give the words of the command: `segment` (which may be left out), `evaluate`, `train` or
    `pretrain` with its own arguments. `fmseg cluster slurm scans --model NAME --output masks --workers 8 --gres gpu:1`
    writes a file that starts a scheduler of dask.distributed and eight workers; for training it starts torchrun.

    Parameters
    ----------
    options
        What is asked of SLURM.
    file
        The batch file; by default fmseg-COMMAND.sbatch here.
    submit
        Also pass it to sbatch.
    """

    options: OmitArgPrefixes[SlurmOptions] = SlurmOptions()  # noqa: RUF009 - frozen
    file: Path | None = None
    submit: bool = False


def run_cluster(words: Sequence[str]) -> int:
    """Run `fmseg cluster WORDS`."""
    if list(words[:1]) != ["slurm"]:
        say(_USAGE)
        return 0 if list(words) in ([], ["--help"], ["-h"]) else 2
    slurm, command = split_slurm(words[1:])
    file = slurm.file or Path(f"fmseg-{command[0]}.sbatch")
    with atomic_write(file) as out:
        out.write(sbatch_text(command, slurm.options, str(Path.cwd())).encode())
    say(str(file))
    if slurm.submit:
        return _submit(file)
    note(f"Read it, then: sbatch {file}")
    return 0


def split_slurm(words: Sequence[str]) -> tuple[Slurm, list[str]]:
    """Separate the options for SLURM from the words of the command, and check these as the command itself does."""
    slurm, command = tyro.cli(
        Slurm, prog="fmseg cluster slurm", args=list(words), return_unknown_args=True, config=(FlagCreatePairsOff,)
    )
    if command[:1] == [] or command[0] not in SHARED_COMMANDS:
        command = ["segment", *command]
    if any(word.partition("=")[0] == "--scheduler" for word in command):
        raise _Usage("The batch file starts a scheduler itself; leave --scheduler out.")
    _parse(command)
    return slurm, command


def _parse(command: Sequence[str]) -> None:
    """Parse a command without running it; SystemExit says what is wrong, here and not in the queue of the cluster."""
    function = SHARED_COMMANDS[command[0]]

    @functools.wraps(function)
    def stand_in(*_: object, **__: object) -> int:
        return 0

    tyro.cli(stand_in, prog=f"fmseg {command[0]}", args=list(command[1:]), config=(FlagCreatePairsOff,))


def _submit(file: Path) -> int:
    if shutil.which("sbatch") is None:
        raise FmsegError(
            f"{file} was written and not submitted: there is no sbatch on this machine. Submit it on a login node of "
            "the cluster."
        )
    done = subprocess.run(["sbatch", str(file)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise FmsegError(f"sbatch did not take {file}: {done.stderr.strip()}. Correct the options and write it again.")
    say(done.stdout.strip())
    return 0


def slurm() -> int:
    """Write a batch file for SLURM that runs segment, evaluate, train or pretrain on several nodes."""
    return run_cluster(["slurm", "--help"])


CLUSTER_COMMANDS: dict[str, Callable[..., int]] = {"slurm": slurm}

"""The command line: ``fmseg segment``, ``fmseg models`` and so on, each a few lines over the library.

It ends with 0 when all went well, 1 for what the user can mend in the input, 2 for a wrong command, 3 for the
machine (device, memory, disk), 70 for a defect of the program, 130 when stopped by Ctrl-C.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path

import tyro
from tyro.conf import FlagCreatePairsOff

from napari_fmseg.cli.console import USE, Json, note, notices, say, table, write_json
from napari_fmseg.cli.exit_codes import _STOPPED, _explain
from napari_fmseg.core.allocator import own_process, use_large_pages
from napari_fmseg.core.hardware import wait_asleep, watch_cores
from napari_fmseg.core.processes import ending_tidily
from napari_fmseg.core.structuring import OLD_SPELLINGS, notify_old_spelling
from napari_fmseg.core.temporary_files import remove_own, sweep

__all__ = ["main"]


@dataclasses.dataclass(frozen=True)
class Command:
    """A command whose module is loaded when it is used; ``fmseg --help`` needs the summaries alone.

    Attributes
    ----------
    module, function
        Where it is, below `napari_fmseg.cli`.
    summary
        The first line of its docstring.
    """

    module: str
    function: str
    summary: str

    def load(self) -> Callable[..., int]:
        """Return its function."""
        command: Callable[..., int] = getattr(import_module(f"napari_fmseg.cli.{self.module}"), self.function)
        return command

    def stand_in(self) -> Callable[[], int]:
        """Return what stands for it where the commands are listed."""

        def stand_in() -> int:
            return self.load()()

        stand_in.__doc__ = self.summary
        return stand_in


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Parameters
    ----------
    argv
        Its arguments without the program's name; None takes those of this process.

    Returns
    -------
    int
        The exit code.
    """
    if argv is not None:  # a program calls us: it keeps its environment and settings
        return _main(argv)
    wait_asleep()
    use_large_pages()
    watch_cores()
    own_process()
    code = _main(sys.argv[1:])
    if code > 128:
        _leave(code)
    return code


_KEPT = "What was saved stays; the same command resumes from there."
_RESUMES = dict.fromkeys(("train", "pretrain", "crossval", "evaluate"), _KEPT) | {
    "segment": "What is done stays; the same command with --resume continues from there."
}


def _leave(code: int) -> None:
    """End a process that was stopped: taking torch down, or a thread that still computes, may last seconds."""
    remove_own()
    with contextlib.suppress(OSError):  # nobody reads them any more
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _main(argv: Sequence[str]) -> int:
    words = [_at_home(word) for word in argv]
    sweep(Path(tempfile.gettempdir()))
    try:
        with ending_tidily(), notices():
            return _run(_with_new_names(words))
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 2
    except KeyboardInterrupt:
        note(f"Stopped. {_RESUMES.get(words[0], '')}".rstrip())
        return _STOPPED
    except BrokenPipeError:  # the reader of our output, such as `head`, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if os.environ.get("FMSEG_DEBUG"):
            raise
        code, text = _explain(error)
        note(f"fmseg: {text}")
        if "--json" in words:
            write_json({"error": {"kind": type(error).__name__, "text": text}})
        return code


def _run(words: list[str]) -> int:
    if words[:1] == ["--version"]:
        return _version()
    if words[:1] == ["cluster"]:
        from napari_fmseg.cli.folders.slurm import run_cluster

        return run_cluster(words[1:])
    commands, prog, rest = _group(words)
    return int(
        tyro.extras.subcommand_cli_from_dict(
            dict(commands), prog=prog, args=rest or ["--help"], config=(FlagCreatePairsOff,),
            description=f"Segment 3-D medical images, and train models for it. {USE}",
        )
    )  # fmt: skip


def _group(words: list[str]) -> tuple[Mapping[str, Callable[..., int]], str, list[str]]:
    """Choose the commands that the words are of: ``fmseg project add`` is one of a group."""
    first = words[0] if words else ""
    if first == "project":
        from napari_fmseg.cli.projects import PROJECT_COMMANDS

        return PROJECT_COMMANDS, "fmseg project", words[1:]
    if first == "datasets":
        from napari_fmseg.cli.datasets import DATASET_COMMANDS

        return DATASET_COMMANDS, "fmseg datasets", words[1:]
    if first == "models":
        from napari_fmseg.cli.models import MODEL_COMMANDS

        if words[1:] and words[1] in MODEL_COMMANDS:
            return MODEL_COMMANDS, "fmseg models", words[1:]
    return {name: one.load() if name == first else one.stand_in() for name, one in COMMANDS.items()}, "fmseg", words


_OLD_COMMANDS = {"why": "explain"}


def _with_new_names(words: list[str]) -> list[str]:
    """Replace commands and options that were renamed, with a notice for each."""
    renamed = list(words)
    if words and words[0] in _OLD_COMMANDS:
        renamed[0] = _OLD_COMMANDS[words[0]]
        notify_old_spelling(f"fmseg {words[0]}", f"fmseg {renamed[0]}")
    for place, word in enumerate(words):
        option, equals, value = word.partition("=")
        new = OLD_SPELLINGS.get(option.removeprefix("--").replace("-", "_")) if option.startswith("--") else None
        if new is not None:
            new = "--" + new.replace("_", "-")
            notify_old_spelling(option, new)
            renamed[place] = new + equals + value
    return renamed


def _at_home(word: str) -> str:
    """Replace a leading ~ by the home folder, also in ``--output=~/x``, which no shell does; ``./~`` stays a name."""
    option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    return option + equals + (os.path.expanduser(value) if value.startswith("~") else value)


def _version() -> int:
    from napari_fmseg.models.provenance import versions

    say(" ".join(f"{name} {version}" for name, version in versions().items()))
    return 0


def doctor(*, as_json: Json = False) -> int:
    """Check this machine: Python, torch, devices, memory, packages and models, with the exact fix for each problem."""
    from napari_fmseg.cli.doctor import examine

    findings = examine()
    worst = 3 if any(f.state == "bad" for f in findings) else 0
    if as_json:
        write_json([dataclasses.asdict(f) for f in findings])
        return worst
    signs = {"ok": "ok", "warn": "!", "bad": "BAD"}
    say(table(("", "WHAT", "FOUND"), [(signs[f.state], f.name, f.text) for f in findings]))
    mends = [f for f in findings if f.fix]
    if mends:
        say("\nWhat to do:")
    for finding in mends:
        say(f"  {finding.name}: {finding.fix}")
    return worst


def project() -> int:
    """Manage training cases and model versions in a folder: init, add, list, split, rank, prepare, keep, predict."""
    return main(["project", "--help"])


def datasets() -> int:
    """Arrange downloaded public data sets, such as LiTS or BraTS, for training: list, prepare."""
    return main(["datasets", "--help"])


def cluster() -> int:
    """Write batch files that run segment, evaluate, train or pretrain on a cluster: slurm."""
    from napari_fmseg.cli.folders.slurm import run_cluster

    return run_cluster(["--help"])


COMMANDS: dict[str, Command] = {
    "segment": Command("segment", "segment", "Segment volumes. Research use only. Not a medical device."),
    "models": Command(
        "models", "models", "List the models: what each segments, how well, and what its licence allows."
    ),
    "score": Command(
        "score",
        "score",
        "Compare a segmentation with the truth: Dice, distances in mm, volumes in ml, for every label.",
    ),
    "evaluate": Command(
        "evaluate",
        "evaluate",
        "Evaluate a model on labelled cases: a table of cases x metrics. Started again, it resumes.",
    ),
    "explain": Command(
        "evaluate",
        "explain",
        "Write a saliency map of a class (Seg-Grad-CAM): 0 to 1, on the grid that the network received.",
    ),
    "lesions": Command(
        "lesions",
        "lesions",
        "Measure every lesion: volume, maximum and mean uptake, total (TLG), position. Research use only.",
    ),
    "project": Command(
        "main",
        "project",
        "Manage training cases and model versions in a folder: init, add, list, split, rank, prepare, keep, predict.",
    ),
    "datasets": Command(
        "main", "datasets", "Arrange downloaded public data sets, such as LiTS or BraTS, for training: list, prepare."
    ),
    "train": Command(
        "train",
        "train",
        "Train a model on labelled volumes, from scratch or from another model. Started again, it resumes.",
    ),
    "crossval": Command(
        "train",
        "crossval",
        "Train and evaluate one model per fold of the cases, and merge them. Started again, it resumes.",
    ),
    "pretrain": Command(
        "train", "pretrain", "Pretrain a network on unlabelled volumes by Volume Fusion. Started again, it resumes."
    ),
    "cluster": Command(
        "main", "cluster", "Write batch files that run segment, evaluate, train or pretrain on a cluster: slurm."
    ),
    "serve": Command(
        "server.command",
        "serve",
        "Serve models, and a project to teach them, to 3D Slicer (MONAI Label module) and OHIF; Ctrl-C ends it.",
    ),
    "bench": Command(
        "bench",
        "bench",
        "Measure time and peak memory of reading, every stage and writing; compare our network code with plain torch.",
    ),
    "phantom": Command("bench", "phantom", "Write a synthetic abdominal CT with its labels."),
    "doctor": Command(
        "main",
        "doctor",
        "Check this machine: Python, torch, devices, memory, packages and models, with the exact fix for each problem.",
    ),
    "convert": Command(
        "models",
        "convert",
        "Convert a published checkpoint (.pt, .pth) to safetensors and a model card; code in it is never run.",
    ),
    "export": Command(
        "export",
        "export",
        "Turn a file with labels into masks per class, meshes for print and 3-D, or a DICOM SEG for an archive.",
    ),
}

"""Read thousands of damaged and hostile files, and tell what a reader must never do.

It must raise nothing but an `FmsegError`, crash nobody, write nothing, give no file from outside of a zip, and stay
within bounds of memory and time, each input on its own.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

MOST_BYTES = 2 << 30
MOST_SECONDS = 10.0  # of the processor, so that a busy machine fails nobody
_ADDRESSES = 12 << 30
_HANGS_S = 120.0


def main() -> int:
    """Make the inputs, share them out, and tell; 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=3000, help="how many inputs")
    parser.add_argument("--first", type=int, default=0, help="the number of the first one")
    parser.add_argument("--workers", type=int, default=max(1, min(4, (os.cpu_count() or 2) - 1)))
    parser.add_argument("--only", type=int, help="one input, with the whole traceback")
    parser.add_argument("--isolated", action="store_true", help="native parsers in a process of their own")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.worker is not None:
        return work(words.worker, words.isolated)
    numbers = range(words.first, words.first + words.count) if words.only is None else [words.only]
    with tempfile.TemporaryDirectory(prefix="fuzz-") as place:
        return share_out(list(numbers), Path(place), words.workers, words.isolated, loud=words.only is not None)


def share_out(numbers: list[int], place: Path, n_workers: int, isolated: bool, *, loud: bool) -> int:
    """Run the inputs in a few processes that live long, as a window does."""
    from fuzz_inputs import SECRET, make_seeds

    start = time.monotonic()
    (place / "outside.raw").write_bytes(SECRET)
    make_seeds(place / "seeds")
    todo: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number in numbers:
        todo.put(number)
    told: list[dict[str, Any]] = []
    threads = [
        threading.Thread(target=_drive, args=(todo, told, place, n, isolated))
        for n in range(min(n_workers, len(numbers)))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wrong = [one for one in told if one["wrong"]]
    for one in sorted(wrong, key=lambda one: one["number"]):
        print(f"{one['number']:5} {one['what']}: {one['wrong']}")
    if loud:
        print(json.dumps(told, indent=2))
    ends = Counter(one["end"] for one in told)
    print(
        f"{len(told)} inputs: {ends['read']} read, {ends['refused']} refused in a sentence, {len(wrong)} wrong. "
        f"Most memory {max(one['peak'] for one in told) / 2**20:,.0f} MB, longest "
        f"{max(one['seconds'] for one in told):.1f} s of the processor; {time.monotonic() - start:.0f} s in all."
    )
    return 1 if wrong or len(told) != len(numbers) else 0


def _drive(todo: queue.SimpleQueue[int], told: list[dict[str, Any]], place: Path, worker: int, isolated: bool) -> None:
    """Hand inputs to one process after the other; one that dies is told and replaced."""
    home = place / f"worker{worker}"
    child = None
    while True:
        try:
            number = todo.get_nowait()
        except queue.Empty:
            break
        if child is None:
            child = _start(home, isolated)
        watch = threading.Timer(_HANGS_S, child.kill)
        watch.start()
        answer = _ask(child, number)
        watch.cancel()
        if answer is None:
            code = child.wait()
            answer = {"number": number, "what": "input", "end": "died", "peak": 0, "seconds": 0.0,
                      "wrong": f"the process died: {code}" + (", it hung" if code == -9 else "")}  # fmt: skip
            child = None
        told.append(answer)
    if child is not None:
        child.stdin.close()
        child.wait()


def _start(home: Path, isolated: bool) -> subprocess.Popen[str]:
    for name in ("home", "temp", "here", "in"):
        shutil.rmtree(home / name, ignore_errors=True)
        (home / name).mkdir(parents=True)
    words = [sys.executable, __file__, "--worker", str(home), *(["--isolated"] if isolated else [])]
    environment = {**os.environ, "TMPDIR": str(home / "temp"), "HOME": str(home / "home"), "OMP_NUM_THREADS": "1",
                   "XDG_CONFIG_HOME": str(home / "home"), "XDG_DATA_HOME": str(home / "home"),
                   "XDG_CACHE_HOME": str(home / "home"), "OPENBLAS_NUM_THREADS": "1"}  # fmt: skip
    root = str(Path(__file__).resolve().parents[1])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH", "")]))
    return subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=home / "here", env=environment
    )


def _ask(child: subprocess.Popen[str], number: int) -> dict[str, Any] | None:
    try:
        child.stdin.write(f"{number}\n")
        child.stdin.flush()
        line = child.stdout.readline()
    except OSError:
        return None
    return json.loads(line) if line.endswith("\n") else None


# --- the process that reads -------------------------------------------------------------------------------------


def work(home: Path, isolated: bool) -> int:
    """Read what is asked for, one input after the other."""
    from fuzz_inputs import make_input

    from napari_fmseg.io.itk import native_reader

    native_reader.isolate(isolated)
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_ADDRESSES, _ADDRESSES))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        number = int(line)
        folder = home / "in" / str(number)
        folder.mkdir()
        what, path = make_input(number, home.parent / "seeds", folder)
        answers.write(json.dumps({"number": number, "what": what, **_judged(home, folder, path, what)}) + "\n")
        answers.flush()
        shutil.rmtree(folder, ignore_errors=True)
    return 0


def _judged(home: Path, folder: Path, path: Path, what: str) -> dict[str, Any]:
    before = _listing(home, folder, what)
    _forget_peak()
    start = time.process_time()
    ends, wrong = set(), []
    for reader in _readers(what, path):
        end, fault = _tried(reader, path, what)
        ends.add(end)
        wrong += [f"{reader}: {fault}"] if fault else []
    seconds, peak = time.process_time() - start, _peak()
    if peak > MOST_BYTES:
        wrong.append(f"took {peak / 2**20:,.0f} MB")
    if seconds > MOST_SECONDS:
        wrong.append(f"took {seconds:.1f} s")
    after = _listing(home, folder, what)
    if after != before:
        wrong.append(f"wrote or removed {sorted(set(after) ^ set(before))[:3]}")
    return {"end": "read" if "read" in ends else "refused", "wrong": "; ".join(wrong), "seconds": seconds, "peak": peak}


def _readers(what: str, path: Path) -> list[str]:
    kind = what.split(":")[0]
    if kind in ("project", "card", "recipe"):
        return {"project": ["open_project", "cases_of"], "card": ["read_card"], "recipe": ["load_recipe"]}[kind]
    more = ["list_series", "preview_series"] if path.is_dir() or kind.startswith("zip") else []
    return ["read_volume", "read_labels", *more, *(["find_volumes"] if path.is_dir() else [])]


def _tried(reader: str, path: Path, what: str) -> tuple[str, str]:
    """Read once; return how it ended, and what was wrong with it."""
    from fuzz_inputs import SECRET

    from napari_fmseg.core.errors import FmsegError

    try:
        found = _reader(reader)(path)
    except FmsegError as error:
        if isinstance(error.__cause__, MemoryError):
            return "refused", f"asked for more memory than there is: {error.__cause__}"
        return "refused", "" if len(str(error)) > 20 else f"says only {error}"
    except BaseException as error:  # noqa: BLE001 - that is what is looked for
        at = traceback.extract_tb(error.__traceback__)[-1]
        return "wrong", f"{type(error).__name__}: {str(error)[:100]} ({Path(at.filename).name}:{at.lineno})"
    data = getattr(found, "data", None)
    if what.startswith("zip") and data is not None and SECRET[:8] in data.tobytes():
        return "read", "gave a file from outside of the zip"
    return "read", ""


def _reader(name: str) -> Any:
    from napari_fmseg import io
    from napari_fmseg.datasets import nnunet_raw
    from napari_fmseg.datasets.projects import project
    from napari_fmseg.io import series_previews
    from napari_fmseg.models import card
    from napari_fmseg.training import recipe_file

    rooms = (io, series_previews, card, recipe_file, nnunet_raw, project)
    return next(getattr(room, name) for room in rooms if hasattr(room, name))


def _listing(home: Path, folder: Path, what: str) -> dict[str, tuple[int, int]]:
    """Return what lies in the process's places; of a project, which may settle what was left, only what is outside."""
    found = {}
    for place in (home / "home", home / "temp", home / "here", home / "in", home.parent):
        for one in place.iterdir() if place == home.parent else place.rglob("*"):
            if place == home.parent and one.is_dir():
                found[str(one)] = (0, 0)
            elif not (what.startswith("project") and one.is_relative_to(folder)):
                told = one.lstat()
                found[str(one)] = (told.st_size, 0 if one.is_dir() else told.st_mtime_ns)
    return found


def _forget_peak() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    from napari_fmseg.core.processes import peak_bytes

    return peak_bytes()


if __name__ == "__main__":
    sys.exit(main())

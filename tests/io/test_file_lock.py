"""A lock on a file: held by one process at a time, free again however that process ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from napari_fmseg.io.file_lock import Busy, hold_lock

HOLD = (
    "import sys; from pathlib import Path; from napari_fmseg.io.file_lock import hold_lock\n"
    "with hold_lock(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
)


def test_a_lock_is_refused_while_another_process_holds_it_and_free_after_that_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(Busy, match="Another program holds"), hold_lock(path):
            pass
        other.kill()
        other.wait()
    with hold_lock(path):
        pass


def test_a_lock_is_free_after_the_block_even_when_it_fails(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), hold_lock(tmp_path / "lock"):
        _ = 1 / 0
    with hold_lock(tmp_path / "lock"):
        pass


def test_a_link_in_the_place_of_the_lock_is_never_followed(tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to(tmp_path / "target")
    with pytest.raises(OSError, match="symbolic"), hold_lock(tmp_path / "lock"):
        pass
    assert not (tmp_path / "target").exists()


def test_a_disk_without_locks_lets_the_block_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    from filelock import FileLock

    def refuse(self: object) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(FileLock, "acquire", refuse)
    ran = []
    with hold_lock(tmp_path / "lock"):
        ran.append(True)
    assert ran

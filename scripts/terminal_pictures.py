"""Draw what a terminal shows while folders are segmented, on one machine and shared out: docs/images/terminal.

    pip install pyte
    python scripts/terminal_pictures.py /share

Every line is what the commands print, on phantoms that are made for it. Needs a Unix terminal, the font DejaVu Sans
Mono, and a folder that may be written and whose name may be read in the pictures; what is made in it is removed.
"""

from __future__ import annotations

import os
import pty
import select
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyte
from PIL import Image, ImageDraw, ImageFont

from napari_fmseg import phantom_ct, write_volume

ROOT = Path(__file__).parents[1]
OUT = ROOT / "docs" / "images" / "terminal"
COLUMNS, ROWS = 118, 60
SIZE, LINE = 15, 20  # pixels
DARK, PLAIN = "#1e1f26", "#d6d8e0"
COLORS = {
    "default": PLAIN, "black": "#555b6e", "red": "#f0716b", "green": "#8fd18b", "brown": "#e5c07b", "blue": "#7aa9f0",
    "magenta": "#d08fe0", "cyan": "#74c7c7", "white": "#ffffff",
}  # fmt: skip
N_SCANS = 6
SPACING_MM = (4.0, 2.0, 2.0)


class Terminal:
    """A shell's screen on which commands run one after the other."""

    def __init__(self, folder: Path, programs: Path) -> None:
        self._folder, self._programs = folder, programs
        self.screen = pyte.Screen(COLUMNS, ROWS)
        self._stream = pyte.ByteStream(self.screen)

    def run(self, command: str, until: Callable[[str], bool] | None = None) -> None:
        """Type a command and wait for its end; or stop looking, and end it, once the screen shows something."""
        self._stream.feed(f"\x1b[1;32m$\x1b[0m \x1b[1m{command}\x1b[0m\r\n".encode())
        pid, terminal = pty.fork()
        if not pid:
            os.chdir(self._folder)
            size = {"COLUMNS": str(COLUMNS), "LINES": str(ROWS), "TERM": "xterm-256color", "OMP_NUM_THREADS": "1"}
            path = f"{self._programs}{os.pathsep}{os.environ['PATH']}"
            os.execvpe("sh", ["sh", "-c", command], {**os.environ, **size, "PATH": path})
        self._read(terminal, until)
        if until is not None:
            os.kill(pid, signal.SIGKILL)
        os.close(terminal)
        os.waitpid(pid, 0)

    def _read(self, terminal: int, until: Callable[[str], bool] | None) -> None:
        end = time.monotonic() + 600
        while time.monotonic() < end:
            if not select.select([terminal], [], [], 1)[0]:
                continue
            try:
                data = os.read(terminal, 512)
            except OSError:  # Linux: the command has ended
                return
            if not data:
                return
            self._stream.feed(data)
            if until is not None and len(data) < 512 and until("\n".join(self.screen.display)):
                return
        raise TimeoutError("The command did not end.")

    def gap(self) -> None:
        """Leave a line empty."""
        self._stream.feed(b"\r\n")

    def draw(self) -> Image.Image:
        """Return what is on the screen."""
        fonts = [ImageFont.truetype(f"DejaVuSansMono{name}.ttf", SIZE) for name in ("", "-Bold")]
        width = round(fonts[0].getlength("m"))
        rows = max((i + 1 for i, row in enumerate(self.screen.display) if row.strip()), default=1)
        margin = LINE // 2
        picture = Image.new("RGB", (COLUMNS * width + 2 * margin, rows * LINE + 2 * margin), DARK)
        pen = ImageDraw.Draw(picture)
        for y in range(rows):
            for x in range(COLUMNS):
                cell = self.screen.buffer[y][x]
                color = COLORS.get(cell.fg) or (f"#{cell.fg}" if len(cell.fg) == 6 else PLAIN)
                if cell.data.strip():
                    pen.text((margin + x * width, margin + y * LINE), cell.data, color, fonts[cell.bold])
        return picture.quantize(32)


def make_scans(folder: Path) -> None:
    """Write small phantoms, and one file that breaks off in the middle."""
    folder.mkdir()
    for i in range(N_SCANS):
        write_volume(phantom_ct(i, spacing=SPACING_MM)[0], folder / f"patient_{i + 1:02d}.nii.gz")
    broken = folder / "patient_04.nii.gz"
    broken.write_bytes(broken.read_bytes()[:40_000])


def link_programs(folder: Path) -> Path:
    """Return a folder with the command `fmseg`, for which Python lies in there, too."""
    folder.mkdir()
    (folder / "python").symlink_to(sys.executable)
    command = folder / "fmseg"
    path = os.pathsep.join([str(ROOT), *sys.path[1:]])
    command.write_text(f'#!/bin/sh\nPYTHONPATH="{path}" exec {folder}/python -m napari_fmseg "$@"\n')
    command.chmod(0o755)
    return folder


def draw_pictures(folder: Path) -> None:
    """Draw all pictures."""
    scans, masks = folder / "scans", folder / "masks"
    make_scans(scans)
    write_volume(phantom_ct(3, spacing=SPACING_MM)[0], folder / "backup.nii.gz")
    programs = link_programs(folder / "bin")
    command = "fmseg segment scans --model fmsf-phantom-ct --output masks --resume"

    terminal = Terminal(folder, programs)
    terminal.run("ls scans")
    terminal.run(command, lambda text: "2/6" in text and "edge" in text)
    terminal.draw().save(OUT / "running.png", optimize=True)

    shutil.rmtree(masks)
    terminal = Terminal(folder, programs)
    terminal.run(command)
    terminal.gap()
    terminal.run("cat masks/failed.csv")
    terminal.gap()
    terminal.run("cp backup.nii.gz scans/patient_04.nii.gz")
    terminal.gap()
    terminal.run(command)
    terminal.draw().save(OUT / "folder.png", optimize=True)

    shutil.rmtree(masks)
    terminal = Terminal(folder, programs)
    terminal.run(f"{command} --scheduler local:2")
    terminal.draw().save(OUT / "workers.png", optimize=True)

    terminal = Terminal(folder, programs)
    terminal.run("fmseg cluster slurm segment scans --model fmsf-phantom-ct --output masks --workers 8 --gres gpu:1")
    terminal.gap()
    terminal.run("cat fmseg-segment.sbatch")
    terminal.draw().save(OUT / "slurm.png", optimize=True)


def main() -> None:
    """Make the folder that the pictures show, and remove it again."""
    folder = Path(sys.argv[1]) / "study"
    OUT.mkdir(parents=True, exist_ok=True)
    folder.mkdir(parents=True)
    try:
        draw_pictures(folder)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main()

"""Who reads a dropped scan: napari's own reader claims the same suffixes, so it would ask each time; asked here once.

The answer, yes or no, is kept in a small file of ours. What the user chose for another reader is never changed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

__all__ = ["OURS", "PATTERNS", "earlier_answer", "offer_as_default_reader", "take_precedence"]

OURS = "napari-fmseg"
PATTERNS = ("*.nii", "*.nii.gz", "*.hdr", "*.img", "*.hdr.gz", "*.img.gz", "*.nrrd", "*.nhdr", "*.mha", "*.mhd",
            "*.dcm", "*.dicom", "*.ima", "*?/")  # fmt: skip
"""Of files and, the last, of folders: so general that any other choice for folders, "*.zarr/" say, comes first."""
_FOLDERS = "*?/"
_ASKED = "fmseg_asked_for_reader"  # property of a window: later is not in the same session


def offer_as_default_reader(parent: Any, *, ask: Callable[[str, Callable[[bool], None]], None] | None = None) -> bool:
    """Offer once to open scans with our reader from now on, without napari's question; call it when a dock opens.

    Nothing happens if it was answered before or put in this window, if nothing would change, or if the window is not on
    the screen.

    Parameters
    ----------
    parent
        A viewer or a widget in its window.
    ask
        Puts a question and later gives the answer; by default a dialog that does not block.

    Returns
    -------
    bool
        Whether the question was put.
    """
    if earlier_answer() is not None or not _missing(_settings()):
        return False
    if ask is None:
        window = _visible_window(parent)
        if window is None or window.property(_ASKED):
            return False
        window.setProperty(_ASKED, True)

        def ask(question: str, answer: Callable[[bool], None]) -> None:
            _ask_in_dialog(window, question, answer)

    ask(_question(_settings()), _on_answer)
    return True


def take_precedence() -> dict[str, str]:
    """Make our reader the one for our suffixes, where no other was chosen, and return what was left to others.

    Returns
    -------
    dict
        Pattern of ours to the reader that the user had chosen for it.
    """
    from napari.settings import get_settings

    settings = _settings()
    get_settings().plugins.extension2reader = {**settings, **dict.fromkeys(_missing(settings), OURS)}
    return _patterns_of_others(settings)


def _patterns_of_others(settings: Mapping[str, str]) -> dict[str, str]:
    """Return which of our patterns the settings give to another reader, by the same or a wider pattern."""
    elsewhere = {}
    for pattern in PATTERNS:
        example = f"folder/scan{pattern[1:]}" if pattern != _FOLDERS else "folder/scan/"
        for other, reader in settings.items():
            if reader != OURS and fnmatch(example, other):
                elsewhere[pattern] = reader
    return elsewhere


def earlier_answer() -> bool | None:
    """Return the answer that was given before; None if the question was never answered."""
    with suppress(OSError, ValueError, AttributeError):
        answer = json.loads(_file().read_text(encoding="utf-8")).get("open_scans_with_fmseg")
        return answer if isinstance(answer, bool) else None
    return None


def _on_answer(yes: bool) -> None:
    if yes:
        take_precedence()
    with suppress(OSError):  # then it is asked again next time, which is no harm
        _file().parent.mkdir(parents=True, exist_ok=True)
        _file().write_text(json.dumps({"open_scans_with_fmseg": yes}) + "\n", encoding="utf-8")


def _file() -> Path:
    from platformdirs import user_config_path

    home = os.environ.get("FMSEG_HOME")
    return (
        Path(os.path.expanduser(home)) if home else user_config_path("napari-fmseg", appauthor=False)
    ) / "panel.json"


def _settings() -> dict[str, str]:
    from napari.settings import get_settings

    return dict(get_settings().plugins.extension2reader)


def _missing(settings: Mapping[str, str]) -> list[str]:
    """List our patterns that no choice of the user's covers yet."""
    elsewhere = _patterns_of_others(settings)
    return [pattern for pattern in PATTERNS if pattern not in elsewhere and settings.get(pattern) != OURS]


def _question(settings: Mapping[str, str]) -> str:
    left = _patterns_of_others(settings)
    kept = "".join(f"\n{_pattern_name(pattern)} stays with {reader}, as you chose." for pattern, reader in left.items())
    return (
        "Open scans with fmseg from now on?\n\n"
        "napari can open these files too, but without the place in the patient, so it would ask each time which "
        "reader to use. “Yes” sets fmseg for NIfTI, NRRD, MetaImage and DICOM in napari's settings. For a folder "
        "that holds no scan napari will still ask.\n"
        f"{kept}\n"
        "You can change this in Preferences > Plugins."
    )


def _pattern_name(pattern: str) -> str:
    return "Folders" if pattern == _FOLDERS else pattern


def _visible_window(parent: Any) -> Any:
    from qtpy.QtWidgets import QWidget

    from napari_fmseg._napari.common.viewer_window import window_of

    window = parent.window() if isinstance(parent, QWidget) else window_of(parent)
    return window if window is not None and window.isVisible() else None


def _ask_in_dialog(window: Any, question: str, answer: Callable[[bool], None]) -> None:
    from qtpy.QtWidgets import QMessageBox

    title, _, text = question.partition("\n\n")
    box = QMessageBox(window)
    box.setWindowTitle("fmseg")
    box.setIcon(QMessageBox.Icon.Question)
    box.setText(title)
    box.setInformativeText(text)
    yes = box.addButton("Yes, open with fmseg", QMessageBox.ButtonRole.YesRole)
    no = box.addButton("No, keep asking", QMessageBox.ButtonRole.NoRole)
    box.addButton("Ask me later", QMessageBox.ButtonRole.RejectRole)

    def on_finished() -> None:
        if box.clickedButton() in (yes, no):
            answer(box.clickedButton() is yes)
        box.deleteLater()

    box.finished.connect(on_finished)
    box.open()

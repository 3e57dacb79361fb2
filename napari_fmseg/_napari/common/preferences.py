"""What the user chose on napari's preferences page (File > Preferences > fmseg), as one frozen dataclass.

napari 0.9 shows and keeps what `napari.yaml` lists under `configurations`; an older napari knows only the defaults.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

__all__ = ["Preferences", "list_device_names", "load"]

PLUGIN = "napari-fmseg"
DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("auto", "float32", "bfloat16", "float16")
SECONDS = range(1, 61)
_PAGES = {
    "device": "computing",
    "precision": "computing",
    "cache_folder": "computing",
    "autosave": "your_work",
    "autosave_seconds": "your_work",
    "notify": "your_work",
}


@dataclass(frozen=True)
class Preferences:
    """The user's choices; the forms start with them.

    Parameters
    ----------
    device
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"mps"``, as `SegmentOptions.device`.
    precision
        ``"auto"``, ``"float32"``, ``"bfloat16"`` or ``"float16"``, as `SegmentOptions.precision`.
    cache_folder
        Where downloads and autosaves go, a full path; "" is `FMSEG_HOME`, or the platform's folder.
    autosave
        Whether labels that are painted on are autosaved.
    autosave_seconds
        Until a change is autosaved, 1 to 60.
    notify
        Whether the desktop tells that a training has ended while another window is used.
    """

    device: str = "auto"
    precision: str = "auto"
    cache_folder: str = ""
    autosave: bool = True
    autosave_seconds: int = 5
    notify: bool = True

    @property
    def folder(self) -> Path:
        """Where downloads and autosaves go."""
        from platformdirs import user_data_path

        chosen = self.cache_folder or os.environ.get("FMSEG_HOME")
        return Path(chosen).expanduser() if chosen else Path(user_data_path("napari-fmseg", appauthor=False))


def list_device_names() -> tuple[str, ...]:
    """Return the devices to choose from, ``"auto"`` first; found without loading torch: the engine knows better."""
    cards = sorted(Path("/dev").glob("nvidia[0-9]*")) if sys.platform.startswith("linux") else []
    if sys.platform == "darwin":
        return ("auto", "cpu", "mps")
    return ("auto", "cpu", "cuda", *(f"cuda:{i}" for i in range(1, len(cards))))


def load() -> Preferences:
    """Return the user's choices; a value that makes no sense is warned of and replaced by its default."""
    settings = _settings()
    if settings is None:
        return Preferences()
    found: dict[str, Any] = {}
    for field in fields(Preferences):
        value = getattr(getattr(settings, _PAGES[field.name], None), field.name, field.default)
        if _SENSIBLE[field.name](value):
            found[field.name] = value
        else:
            warnings.warn(
                f"The preference {field.name} of fmseg cannot be {value!r}: {field.default!r} is used. "
                "Change it under File > Preferences > fmseg.",
                stacklevel=2,
            )
    return Preferences(**found)


def _settings() -> Any | None:
    """Return napari's settings of this plugin, or None where they are not to be had."""
    try:
        from napari.settings import get_plugin_settings
    except ImportError:  # before napari 0.9
        return None
    try:
        return get_plugin_settings(PLUGIN)
    except KeyError:  # run from its source folder, or switched off: no manifest was found
        return None
    except (OSError, ValueError) as error:  # an unreadable or nonsensical file (pydantic's errors are ValueErrors)
        warnings.warn(f"The preferences of fmseg cannot be read: {error}. The defaults are used.", stacklevel=3)
        return None


def _is_folder(value: object) -> bool:
    if not isinstance(value, str):
        return False
    if value.startswith("~") and not os.path.expanduser(value).startswith("~"):
        return True
    return not value or (Path(value).is_absolute() and (not Path(value).exists() or Path(value).is_dir()))


_SENSIBLE: dict[str, Callable[[Any], bool]] = {
    "device": lambda v: isinstance(v, str) and (v in DEVICES or v.removeprefix("cuda:").isdecimal()),
    "precision": lambda v: v in PRECISIONS,
    "cache_folder": _is_folder,
    "autosave": lambda v: isinstance(v, bool),
    "autosave_seconds": lambda v: isinstance(v, int) and not isinstance(v, bool) and v in SECONDS,
    "notify": lambda v: isinstance(v, bool),
}

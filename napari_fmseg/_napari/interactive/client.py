"""A server of nnInteractive (Isensee et al. 2025, https://arxiv.org/abs/2503.08373), through its own client package.

The package `nninteractive-client` (Apache-2.0) needs no torch, but loads it where it is installed; that would make the
window wait for seconds, so it is kept from doing so. The weights that a server runs have a licence of their own.
Everything here waits for the network: call it in a job.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_fmseg.core.errors import FmsegError

__all__ = ["LICENCE", "Box", "Mask", "Point", "PromptServer", "is_installed"]

LICENCE = "CC BY-NC-SA 4.0"
"""Of the weights that nnInteractive's authors publish; a server may say otherwise of its own."""
INSTALL = 'Install it with pip install "napari-fmseg[nninteractive]" and start napari again.'


@dataclass(frozen=True)
class Point:
    """A voxel (z, y, x) that belongs to the structure, or does not."""

    at: tuple[int, int, int]
    include: bool = True


@dataclass(frozen=True)
class Box:
    """First and last but one voxel along z, y and x; one of them spans one voxel: boxes are drawn in a slice."""

    low: tuple[int, int, int]
    high: tuple[int, int, int]
    include: bool = True


@dataclass(frozen=True, eq=False)
class Mask:
    """A scribble, or with `is_lasso` the outline around the structure: a mask of the whole image, set in one slice."""

    mask: npt.NDArray[np.bool_]
    include: bool = True
    is_lasso: bool = False


def is_installed() -> bool:
    """Return whether the client package is there, without loading it."""
    try:
        return find_spec("nnInteractive.inference.remote") is not None
    except ImportError:
        return False


class PromptServer:
    """A session on a server: one image, and the prompts that were given on it.

    Parameters
    ----------
    address
        Such as ``"http://127.0.0.1:1527"``.
    key
        The server's API key, if it wants one.

    Attributes
    ----------
    licence
        Of the weights that the server runs, as it says.
    can_undo
        Whether prompts can be taken back.
    """

    def __init__(self, address: str, key: str = "") -> None:
        if not is_installed():
            raise FmsegError(f"The client of nnInteractive is not installed. {INSTALL}")
        self.address = address
        with _no_torch():
            from nnInteractive.inference.remote import nnInteractiveRemoteInferenceSession as RemoteSession
        self._session: Any = RemoteSession.__new__(RemoteSession)
        try:
            self._ask(lambda: self._session.__init__(address, api_key=key or None))
        except FmsegError:
            if hasattr(self._session, "_http"):
                self._session._http.close()  # it leaves its connection open when it cannot begin a session
            raise
        told = str(self._session.license or "")
        self.licence = told if told and "MISSING" not in told else LICENCE
        self.can_undo = bool(self._session.supports_undo)
        self._found: npt.NDArray[np.uint8] = np.zeros((0, 0, 0), np.uint8)

    def set_image(self, image: npt.NDArray[Any]) -> None:
        """Send the voxels (z, y, x) of an image; prompts before it are forgotten."""
        self._found = np.zeros(image.shape, np.uint8)
        voxels = image if image.dtype.kind in "iuf" and image.dtype != np.float16 else image.astype(np.float32)
        self._ask(lambda: self._session.set_image(np.ascontiguousarray(voxels)[None]))
        self._ask(lambda: self._session.set_target_buffer(self._found))

    def add(self, prompt: Point | Box | Mask) -> npt.NDArray[np.uint8]:
        """Send a prompt and return the mask (z, y, x) as the server finds it then."""
        if isinstance(prompt, Point):
            self._ask(lambda: self._session.add_point_interaction(prompt.at, include_interaction=prompt.include))
        elif isinstance(prompt, Box):
            sides = [list(pair) for pair in zip(prompt.low, prompt.high, strict=True)]
            self._ask(lambda: self._session.add_bbox_interaction(sides, include_interaction=prompt.include))
        else:
            give = self._session.add_lasso_interaction if prompt.is_lasso else self._session.add_scribble_interaction
            self._ask(lambda: give(prompt.mask.astype(np.uint8), include_interaction=prompt.include))
        return self._found.copy()

    def undo(self) -> npt.NDArray[np.uint8]:
        """Revert the last prompt and return the mask as it was before."""
        self._ask(self._session.undo)
        return self._found.copy()

    def reset(self) -> None:
        """Forget all prompts, for another structure in the same image."""
        self._ask(self._session.reset_interactions)

    def close(self) -> None:
        """Return the session to the server; again does no harm."""
        self._session.close()

    def _ask(self, what: Callable[[], Any]) -> Any:
        """Call the client, and raise in a sentence what goes wrong."""
        import httpx
        from nnInteractive.inference.remote import ServerAtCapacityError, SessionExpiredError

        try:
            return what()
        except SessionExpiredError as error:
            raise FmsegError(
                f"The server at {self.address} has ended the session, as it does after some minutes without a prompt. "
                "Connect again; prompts that were not accepted have to be given again."
            ) from error
        except ServerAtCapacityError as error:
            raise FmsegError(
                f"The server at {self.address} serves as many people as it can. Try again later, or ask who runs it "
                "for more sessions (--max-sessions)."
            ) from error
        except httpx.HTTPStatusError as error:
            code = error.response.status_code
            hint = "Check the API key." if code in (401, 403) else "Is it a server of nnInteractive of version 2?"
            raise FmsegError(f"The server at {self.address} refused the request (HTTP {code}). {hint}") from error
        except (httpx.HTTPError, httpx.InvalidURL, KeyError, ValueError) as error:
            raise FmsegError(
                f"No server of nnInteractive answers at {self.address} ({type(error).__name__}). Is it running "
                "(nninteractive-server), and are address and port right?"
            ) from error


@contextmanager
def _no_torch() -> Iterator[None]:
    """Keep imports of this thread from loading torch; other threads are not concerned."""
    if "torch" in sys.modules:
        yield
        return
    finder = _NoTorch(threading.get_ident())
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


class _NoTorch:
    """Tells one thread that there is no torch."""

    def __init__(self, thread: int) -> None:
        self._thread = thread

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        if name == "torch" and threading.get_ident() == self._thread:
            raise ImportError("torch is not needed here")
        return None

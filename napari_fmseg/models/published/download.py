"""One file from its address, with size and SHA-256 known before; what differs is not kept. Pooch does the work."""

from __future__ import annotations

import logging
import queue
import re
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from napari_fmseg.core.errors import Cancelled, FmsegError
from napari_fmseg.core.events import Progress

__all__ = ["RemoteFile", "download", "is_complete"]

_CHUNK = 1 << 18
_TIMEOUT_S = 30
_HERE = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class RemoteFile:
    """A file of somebody else's, as a registry describes it.

    Attributes
    ----------
    url
        Where it is; https, or http on this machine.
    file
        What it is called here.
    size
        Bytes.
    sha256
        64 hexadecimal digits.
    hosts
        Further machines to which its host may send the request on; the hash holds for what they send, too.
    """

    url: str
    file: str
    size: int
    sha256: str
    hosts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        address = urlsplit(self.url)
        if address.scheme != "https" and not (address.scheme == "http" and address.hostname in _HERE):
            raise ValueError(f"{self.url} is not fetched over https")
        if not re.fullmatch(r"[0-9a-f]{64}", self.sha256):
            raise ValueError(f"{self.file} has no sha256 of 64 small hexadecimal digits")
        if self.file != Path(self.file).name or not self.file or self.size < 1:
            raise ValueError(f"{self.file!r} of {self.size} bytes: a plain name and a size are needed")

    @property
    def host(self) -> str:
        """The name of the machine that it comes from."""
        return urlsplit(self.url).hostname or ""


def is_complete(remote: RemoteFile, folder: Path) -> bool:
    """Return whether the file lies in a folder and is the right one."""
    import pooch

    path = folder / remote.file
    try:
        return path.stat().st_size == remote.size and pooch.file_hash(str(path)) == remote.sha256
    except OSError:
        return False


def download(remote: RemoteFile, folder: Path, title: str) -> Generator[Progress, None, Path]:
    """Download a file into a folder, whole or not at all; one that is there already and right is not fetched again.

    Ending the iterator early ends the download and leaves nothing behind.

    Parameters
    ----------
    remote
        The file.
    folder
        Made if it is not there.
    title
        What messages call it.

    Yields
    ------
    Progress
        In bytes.

    Returns
    -------
    Path
        Of the file.

    Raises
    ------
    FmsegError
        If the host cannot be reached, the disk is full, or the size or the hash differs: then nothing is kept.
    """
    path = folder / remote.file
    if is_complete(remote, folder):
        return path
    meter = _Meter(remote.size)
    thread = threading.Thread(target=_fetch, args=(remote, folder, meter), name="fmseg download", daemon=True)
    thread.start()
    try:
        while (done := meter.news.get()) is not None:
            yield Progress("download", min(done, remote.size), remote.size)
    except GeneratorExit:
        meter.stopped = True
        thread.join()
        path.unlink(missing_ok=True)  # it may have come to its end just now
        raise
    thread.join()
    if meter.error is not None:
        raise _as_user_error(meter.error, remote, title) from meter.error
    size = path.stat().st_size
    if size != remote.size:  # though the hash was right: the registry contradicts itself
        path.unlink()
        raise FmsegError(_wrong_size(remote, title, f"{size:,} instead of {remote.size:,}"))
    return path


class _Meter:
    """What pooch reports of a download to, and by which it is stopped: pooch's own interface of a progress bar."""

    def __init__(self, size: int) -> None:
        self.total = 0  # set by pooch, from what the host states
        self.stopped = False
        self.error: Exception | None = None
        self.news: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._size, self._done = size, 0

    def update(self, n: int) -> None:
        """Count bytes; end the download where nobody waits for it any more, or where there are too many."""
        if self.stopped:
            raise Cancelled("The download was stopped.")
        self._done += n
        if self._done >= self._size + 2 * _CHUNK or self.total > self._size:
            raise _TooLargeError
        self.news.put(self._done)

    def reset(self) -> None:
        """Begin anew, as pooch does before it fills the bar at the end."""
        self._done = 0

    def close(self) -> None:
        """Do nothing: there is no bar to close."""


class _TooLargeError(Exception):
    """The host sends more than the registry states."""


def _fetch(remote: RemoteFile, folder: Path, meter: _Meter) -> None:
    """Download in a thread; whatever went wrong is left in the meter."""
    import pooch

    answers = []

    def stay(response: Any, **_: Any) -> None:
        """Follow the host to no other machine than those registered."""
        answers.append(response)
        there = urlsplit(response.headers.get("location", "")).hostname
        if response.is_redirect and there not in (None, remote.host, *remote.hosts):
            raise FmsegError(
                f"{remote.host} sends the download of {remote.file} on to {there}, which is not registered for it. "
                "Nothing was fetched from there. Tell those who maintain the registry."
            )

    fetch = pooch.HTTPDownloader(
        progressbar=meter, chunk_size=_CHUNK, timeout=_TIMEOUT_S, hooks={"response": stay},
        headers={"User-Agent": "napari-fmseg", "Accept-Encoding": "identity"},
    )  # fmt: skip
    try:
        with _silent(pooch.get_logger()):
            pooch.retrieve(remote.url, f"sha256:{remote.sha256}", remote.file, folder, downloader=fetch)
    except (OSError, ValueError, FmsegError, _TooLargeError) as error:  # requests' own errors are OSErrors
        meter.error = error
    finally:
        for answer in answers:  # pooch leaves them open where something went wrong
            answer.close()
        meter.news.put(None)


@contextmanager
def _silent(logger: logging.Logger) -> Iterator[None]:
    """Keep pooch from writing addresses and folders to the terminal."""
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _as_user_error(error: Exception, remote: RemoteFile, title: str) -> FmsegError:
    """Return what went wrong, and what to do, as an error for the user."""
    if isinstance(error, FmsegError):
        return error
    if isinstance(error, _TooLargeError):
        return FmsegError(_wrong_size(remote, title, f"more than {remote.size:,}"))
    if isinstance(error, ValueError) and not isinstance(error, OSError):
        return FmsegError(
            f"What {remote.host} sent for {title} is not the file that was registered: its sha256 is not "
            f"{remote.sha256[:12]}…. It was not kept; do not fetch it by hand either."
        )
    return FmsegError(f"{title} could not be downloaded from {remote.host}: {_reason(error)}")


def _wrong_size(remote: RemoteFile, title: str, size: str) -> str:
    return (
        f"What {remote.host} sent for {title} has {size} bytes. It was not kept. "
        "The file was changed there or the download was cut short; try again later."
    )


def _reason(error: Exception) -> str:
    from requests import exceptions

    again = "Check the connection and the free space, and try again."
    if isinstance(error, exceptions.ProxyError):
        return f"the proxy of this network did not let it pass. Check HTTPS_PROXY, or ask who runs the network. {again}"
    if isinstance(error, exceptions.SSLError):
        return (
            "its certificate could not be verified, as where a network's proxy puts its own in place. Name that one in "
            "REQUESTS_CA_BUNDLE, or ask who runs the network."
        )
    if isinstance(error, exceptions.Timeout):
        return f"it did not answer within {_TIMEOUT_S} s. {again}"
    if isinstance(error, exceptions.HTTPError) and error.response is not None:
        return f"{error.response.status_code} {error.response.reason}. The file may have moved. {again}"
    if isinstance(error, exceptions.ConnectionError | exceptions.ChunkedEncodingError):
        return f"no connection, or it broke off. {again}"
    return f"{getattr(error, 'strerror', None) or error}. {again}"

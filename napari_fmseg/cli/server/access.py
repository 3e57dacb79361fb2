"""Who may use the server: holders of a token, and never a web page that was not named."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import secrets
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from napari_fmseg.core.atomic_write import atomic_write
from napari_fmseg.core.errors import FmsegError

__all__ = ["Guard", "is_loopback", "read_token"]

_LEAST_LENGTH = 16
_LOGIN_SECONDS = 12 * 3600.0
_MOST_LOGINS = 256
_GRANT_SECONDS = 60.0


def is_loopback(host: str) -> bool:
    """Return whether only this computer reaches an address."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def read_token(path: Path) -> str:
    """Read the token from a file; a missing file is created with a new random token that only this user can read.

    Raises
    ------
    FmsegError
        If other users can read the file, or the token is too short to be one.
    """
    if not path.exists():
        with atomic_write(path) as file:
            os.chmod(file.name, 0o600)
            file.write(secrets.token_urlsafe(24).encode() + b"\n")
    try:
        token = path.read_text(encoding="utf-8").strip()
        mode = path.stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        raise FmsegError(
            f"The token cannot be read from {path}: {error}. Choose a file with one line of text."
        ) from error
    if os.name == "posix" and mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise FmsegError(f"Other users can read the token in {path}. Keep it to yourself: chmod 600 {path}")
    if len(token) < _LEAST_LENGTH or not token.isprintable():
        raise FmsegError(
            f"The token in {path} has {len(token)} characters; expected one line of at least {_LEAST_LENGTH}. Remove "
            "the file: `fmseg serve` then creates it with a new token."
        )
    return token


@dataclass
class Guard:
    """Decides which requests are answered.

    Parameters
    ----------
    token
        The password; "" where everybody who reaches the server may use it, which must then be this computer only.
    origins
        Addresses of web pages that may use the server, such as ``https://ohif.example.org``.
    local
        Whether the server listens on this computer only: then it answers to no other name, so that no web page can
        reach it under a name of its own.
    clock
        Seconds that only increase.
    """

    token: str = ""
    origins: tuple[str, ...] = ()
    local: bool = True
    clock: Callable[[], float] = time.monotonic
    _logins: dict[str, float] = field(default_factory=dict)
    _grants: dict[tuple[str, str], float] = field(default_factory=dict)

    @property
    def is_enabled(self) -> bool:
        """Whether a token is needed."""
        return bool(self.token)

    def log_in(self, password: str) -> str | None:
        """Return a bearer token for the right password, else None."""
        if not self.is_enabled or not _equal(password, self.token):
            return None
        now = self.clock()
        self._logins = {digest: until for digest, until in self._logins.items() if until > now}
        while len(self._logins) >= _MOST_LOGINS:
            self._logins.pop(next(iter(self._logins)))
        bearer = secrets.token_urlsafe(32)
        self._logins[_digest(bearer)] = now + _LOGIN_SECONDS
        return bearer

    def allows(self, authorization: str) -> bool:
        """Return whether an Authorization header holds a bearer token of `log_in`, or the token itself."""
        if not self.is_enabled:
            return True
        kind, _, given = authorization.partition(" ")
        if kind.lower() != "bearer" or not given:
            return False
        now, digest = self.clock(), _digest(given)
        known = [until > now for own, until in self._logins.items() if _equal(own, digest)]
        return any(known) or _equal(given, self.token)

    def allows_origin(self, origin: str) -> bool:
        """Return whether a request may come from a web page of that address; "" is no web page."""
        return not origin or origin in self.origins

    def allows_host(self, host: str) -> bool:
        """Return whether the server answers to the name that a request calls it by."""
        try:
            return not self.local or is_loopback(urlsplit(f"//{host}").hostname or "")
        except ValueError:
            return False

    def grant(self, address: str, case: str) -> None:
        """Allow an address to download one image without a token for a minute: Slicer does it without any."""
        now = self.clock()
        self._grants = {key: until for key, until in self._grants.items() if until > now}
        self._grants[address, case] = now + _GRANT_SECONDS

    def is_granted(self, address: str, case: str) -> bool:
        """Return whether `grant` still holds."""
        return self._grants.get((address, case), 0.0) > self.clock()


def _equal(one: str, other: str) -> bool:
    """Compare in a time that does not depend on how much is equal."""
    return hmac.compare_digest(one.encode(), other.encode())


def _digest(bearer: str) -> str:
    return hashlib.sha256(bearer.encode()).hexdigest()

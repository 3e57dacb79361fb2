"""Uploaded forms: files go to a folder of their own while they arrive, under names of our own."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.exceptions import HTTPException
from starlette.requests import Request

from napari_fmseg.io import suffix_of

__all__ = ["Form", "receive_form"]

_MOST_FIELD_BYTES = 1 << 20
_MOST_PARTS = 20_000
_LONGEST_BOUNDARY = 256
_IN_TWO_FILES = (".hdr", ".img", ".hdr.gz", ".img.gz", ".nhdr", ".mhd")


@dataclass
class Form:
    """An uploaded form.

    Attributes
    ----------
    fields
        Text by name.
    files
        Where each file lies now, by the name of its field. Their names tell nothing of those that the client has.
    """

    fields: dict[str, str] = field(default_factory=dict)
    files: dict[str, list[Path]] = field(default_factory=dict)

    def file(self, name: str) -> Path | None:
        """Return the only file of a field, or None."""
        found = self.files.get(name, [])
        return found[0] if found else None


async def receive_form(request: Request, folder: Path, most_bytes: int) -> Form:
    """Receive a form; its files are written to `folder` as they arrive.

    Parameters
    ----------
    request
        Its content type is not read: a client that has logged in repeats the one of its last request.
    folder
        An empty one, which the caller removes.
    most_bytes
        Of the whole form.

    Raises
    ------
    HTTPException
        413 if it is larger, 422 if it is no form.
    ClientDisconnect
        If the client has gone.
    """
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > 2 * most_bytes:
        raise _too_large(most_bytes)
    receiver, received = _Receiver(folder), 0
    try:
        async for chunk in request.stream():
            received += len(chunk)
            if received > 2 * most_bytes:
                raise _too_large(most_bytes)
            if received > most_bytes:  # go on reading for a while, or the client would never see the answer
                receiver.discard()
                continue
            receiver.write(chunk)
    except FormParserError as error:
        raise HTTPException(422, "The form cannot be read. Expected multipart/form-data.") from error
    finally:
        receiver.close()
    if received > most_bytes:
        raise _too_large(most_bytes)
    if received and not receiver.is_complete:
        raise HTTPException(422, "The form ends too early. Expected multipart/form-data, to its end.")
    return receiver.form


def _too_large(most_bytes: int) -> HTTPException:
    return HTTPException(
        413, f"The upload is larger than the {most_bytes / 2**30:.3g} GiB that this server takes. Crop the image, or "
        "start the server with a larger --max-upload-gb."
    )  # fmt: skip


class _Receiver:
    """Writes the parts of a form to files and fields."""

    def __init__(self, folder: Path) -> None:
        self.form, self.is_complete = Form(), False
        self._folder, self._start = folder, b""
        self._parser: MultipartParser | None = None
        self._header, self._value, self._headers = b"", b"", dict[bytes, bytes]()
        self._name = ""
        self._text: bytearray | None = None
        self._file: IO[bytes] | None = None
        self._n_parts = self._n_field_bytes = 0

    def write(self, chunk: bytes) -> None:
        """Parse the next bytes of the form; its first line is the boundary between its parts."""
        if self._parser is None:
            self._start = chunk = self._start + chunk
            if b"\r\n" not in chunk and len(chunk) <= _LONGEST_BOUNDARY:
                return
            found = re.match(rb"--([^\r\n]{1,250})\r\n", chunk)
            if found is None:
                raise HTTPException(422, "The request is no form. Expected multipart/form-data.")
            self._parser = MultipartParser(
                found[1],
                {
                    "on_part_begin": self._on_part_begin,
                    "on_part_data": self._on_part_data,
                    "on_part_end": self._on_part_end,
                    "on_header_field": self._on_header_field,
                    "on_header_value": self._on_header_value,
                    "on_header_end": self._on_header_end,
                    "on_headers_finished": self._on_headers_finished,
                    "on_end": self._on_end,
                },
            )
        self._parser.write(chunk)

    def close(self) -> None:
        """Close the file that is being written."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def discard(self) -> None:
        """Remove what was written: the form is not wanted any more."""
        self.close()
        for path in (path for paths in self.form.files.values() for path in paths):
            with suppress(OSError):
                path.unlink(missing_ok=True)
        self.form.files.clear()

    def _on_part_begin(self) -> None:
        self._n_parts += 1
        self._headers = {}
        if self._n_parts > _MOST_PARTS:
            raise HTTPException(413, f"The form has more than {_MOST_PARTS} parts.")

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header_end(self) -> None:
        self._headers[self._header.lower()] = self._value
        self._header = self._value = b""

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        self._name = options.get(b"name", b"").decode("utf-8", "replace")
        client_name = options.get(b"filename")
        if client_name is None:
            self._text = bytearray()
            return
        path = self._folder / f"upload-{self._n_parts:05d}{_suffix(client_name)}"
        self.form.files.setdefault(self._name, []).append(path)
        self._file = path.open("xb")

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._file is not None:
            self._file.write(data[start:end])
        elif self._text is not None:
            self._n_field_bytes += end - start
            if self._n_field_bytes > _MOST_FIELD_BYTES:
                raise HTTPException(413, "The text fields of the form are larger than 1 MiB.")
            self._text += data[start:end]

    def _on_part_end(self) -> None:
        if self._file is not None:
            self.close()
        elif self._text is not None:
            self.form.fields[self._name] = self._text.decode("utf-8", "replace")
            self._text = None

    def _on_end(self) -> None:
        self.is_complete = True


def _suffix(client_name: bytes) -> str:
    """Return the suffix that names the format; nothing else of a client's name is used, which may be a patient's."""
    suffix = suffix_of(re.split(r"[/\\]", client_name.decode("latin-1"))[-1])
    if suffix in _IN_TWO_FILES:
        raise HTTPException(
            422, f"A volume in two files ({suffix}) cannot be uploaded. Save it in one: .nii.gz, .nrrd or .mha."
        )
    return suffix

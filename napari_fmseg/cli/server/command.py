"""`fmseg serve`: the options, and the server from its start to its end."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import OmitArgPrefixes, Positional, arg

from napari_fmseg.cli.console import USE, AcceptLicence, Json, note, say, show_terms, table, write_json
from napari_fmseg.cli.exit_codes import _Usage
from napari_fmseg.cli.server.access import Guard, is_loopback, read_token
from napari_fmseg.cli.server.record import ServerRecord, ServerStatus, list_servers, publish_record
from napari_fmseg.core.errors import FmsegError, MissingExtra
from napari_fmseg.core.structuring import Range, wrong_number
from napari_fmseg.core.temporary_files import passing_name
from napari_fmseg.pipelines import SegmentOptions
from napari_fmseg.training.projects import LabelOptions

if TYPE_CHECKING:
    from napari_fmseg.cli.server.service import Service

__all__ = ["ServerOptions", "serve"]

_RANGES = {
    "port": Range(0, 65535),
    "max_upload_gb": Range(0, open="low"),
    "session_minutes": Range(0, open="low"),
}


@dataclass(frozen=True)
class ServerOptions:
    """How a server is reached and what it takes.

    Parameters
    ----------
    host
        Address to listen on. Any other than this computer's own needs --token-file.
    port
        Number of the port; 0 takes a free one.
    token_file
        A file with the password of the server, readable by you only; created if it is missing.
    certificate, certificate_key
        PEM files: serve HTTPS.
    origin
        Addresses of web pages that may use the server, such as OHIF's: https://ohif.example.org.
    dicom
        A folder of DICOM series that OHIF can have segmented, by SeriesInstanceUID.
    minutes
        About how long a training takes, if the client does not say.
    max_upload_gb
        Most GiB of an upload.
    session_minutes
        After how long without use an uploaded image is removed.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token_file: Path | None = None
    certificate: Path | None = None
    certificate_key: Path | None = None
    origin: tuple[str, ...] = ()
    dicom: Path | None = None
    minutes: float = 5.0
    max_upload_gb: float = 4.0
    session_minutes: float = 60.0

    def __post_init__(self) -> None:
        if wrong := wrong_number(self, _RANGES):
            raise _Usage(f"{wrong}.")

    def guard(self) -> Guard:
        """Return who may use the server; one that others can reach needs a token."""
        local = is_loopback(self.host)
        if (self.certificate is None) != (self.certificate_key is None):
            raise _Usage("HTTPS needs both --certificate and --certificate-key.")
        if self.token_file is None and not local:
            raise _Usage(
                f"Other computers can reach the server on {self.host}, so it needs a password. Add --token-file FILE; "
                "a missing file is created with a new token. Or leave --host out, to serve this computer only."
            )
        return Guard("" if self.token_file is None else read_token(self.token_file), self.origin, local)


def serve(
    project: Positional[Annotated[Path | None, arg(metavar="PROJECT")]] = None,
    /,
    *,
    models: tuple[str, ...] = (),
    server: OmitArgPrefixes[ServerOptions] = ServerOptions(),
    run: OmitArgPrefixes[SegmentOptions] = SegmentOptions(),  # noqa: B008 - frozen
    labelling: OmitArgPrefixes[LabelOptions] = LabelOptions(),  # noqa: B008 - frozen
    status: bool = False,
    accept_licence: AcceptLicence = False,
    as_json: Json = False,
) -> int:
    """Serve models, and a project to teach them, to 3D Slicer (MONAI Label module) and OHIF; Ctrl-C ends it.

    Parameters
    ----------
    project
        Its model in use is served; its images can be fetched, labelled and submitted, and its model trained.
    models
        Names of models, or paths of model cards, to serve.
    status
        Do not serve: list the servers that run on this computer, their clients and trainings.
    """
    if status:
        return _show_status(as_json)
    _check_extra()
    if project is None and not models:
        raise _Usage("There is nothing to serve. Name a project, or models with --models.")
    guard = server.guard()
    folder = Path(tempfile.gettempdir()) / passing_name()
    folder.mkdir(mode=0o700)
    try:
        with contextlib.closing(_service(folder, project, models, guard, server, run, labelling)) as service:
            for model in service.shared:
                show_terms(model.card, accept_licence)
            _run(service, server)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


def _check_extra() -> None:
    for name in ("starlette", "uvicorn", "python_multipart"):
        if importlib.util.find_spec(name) is None:
            raise MissingExtra(
                f"The server needs the package {name}, which is not installed. Install it with: pip install "
                "'napari-fmseg[serve]'"
            )


def _service(
    folder: Path,
    project: Path | None,
    models: tuple[str, ...],
    guard: Guard,
    server: ServerOptions,
    run: SegmentOptions,
    labelling: LabelOptions,
) -> Service:
    """Build what the server consists of; with its project, whose new cases are examined first."""
    from napari_fmseg.cli.server.cases import Cases
    from napari_fmseg.cli.server.rounds import Rounds
    from napari_fmseg.cli.server.served_models import ServedModel, check_classes
    from napari_fmseg.cli.server.service import Service
    from napari_fmseg.cli.server.sessions import Sessions
    from napari_fmseg.io.itk import native_reader
    from napari_fmseg.models.registry import find_card
    from napari_fmseg.training.projects import TrainingOptions, open_project, scan_all
    from napari_fmseg.workers.engine import RemoteEngine

    training = TrainingOptions(minutes=server.minutes, device=run.device, precision=run.precision)
    shared = tuple(ServedModel(card.name, card) for card in map(find_card, dict.fromkeys(models)))
    for model in shared:
        check_classes(model.card)
    cases = rounds = None
    if project is not None:
        scan_all(open_project(project))
        cases, rounds = Cases(project.absolute(), labelling), Rounds(project.absolute(), _log)
    native_reader.isolate()  # an uploaded file that makes a parser crash must not end the server
    engine = RemoteEngine()
    engine.start()
    return Service(
        folder=folder,
        shared=shared,
        guard=guard,
        sessions=Sessions(folder, 60 * server.session_minutes),
        engine=engine,
        cases=cases,
        rounds=rounds,
        options=run,
        training=training,
        dicom=server.dicom,
        most_bytes=int(server.max_upload_gb * 2**30),
        key=secrets.token_urlsafe(24),
    )


def _run(service: Service, server: ServerOptions) -> None:
    """Answer requests until a signal ends the process."""
    import uvicorn

    from napari_fmseg.cli.server.app import build_app

    scheme = "http" if server.certificate is None else "https"
    with _listening(server.host, server.port) as listener:
        port = listener.getsockname()[1]
        url = f"{scheme}://{_in_url(server.host)}:{port}"
        local_url = f"{scheme}://{_in_url(_from_here(server.host))}:{port}"
        config = uvicorn.Config(
            build_app(service, _log),
            http="h11",
            ws="none",
            lifespan="on",
            loop="asyncio",
            log_config=None,
            access_log=False,  # it would hold what clients call their images
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=5,
            ssl_certfile=server.certificate,
            ssl_keyfile=None if server.certificate_key is None else str(server.certificate_key),
        )
        with publish_record(ServerRecord(os.getpid(), url, local_url, service.key)):
            _announce(service, url, server.token_file)
            uvicorn.Server(config).run(sockets=[listener])


@contextlib.contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    """Yield a socket that listens, or say why there is none."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        raise FmsegError(
            f"The server cannot listen on {host}, port {port}: {error}. Choose another --port (0 takes a free one) or "
            "--host; `fmseg serve --status` lists whether a server runs already."
        ) from error
    with listener:
        yield listener


def _from_here(host: str) -> str:
    """Return under which address this computer reaches a server of its own that listens on `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _announce(service: Service, url: str, token_file: Path | None) -> None:
    what = "" if service.cases is None else f"project {service.cases.folder}"
    names = ", ".join(model.name for model in service.models())
    say(f"Serving {' and '.join(filter(None, (what, names)))} at {url}")
    if token_file is not None:
        note(f"The password for any user name is the token in {token_file}.")
        if url.startswith("http:"):
            note("Password and images travel unencrypted. Use it in a network you trust, or add --certificate.")
    note(f"Address for 3D Slicer's MONAI Label module: {url}\nCtrl-C ends the server. {USE}")


def _log(text: str) -> None:
    note(f"{time.strftime('%H:%M:%S')} {text}")


def _show_status(as_json: bool) -> int:
    servers = list_servers()
    if as_json:
        write_json([asdict(server) for server in servers])
        return 0
    if not servers:
        note("No server of yours runs on this computer. Start one: fmseg serve PROJECT")
    for server in servers:
        _show_server(server)
    return 0


def _show_server(server: ServerStatus) -> None:
    say(f"{server.url}  process {server.pid}")
    if not server.answers:
        say("  does not answer: it is starting or ending")
        return
    facts = server.facts
    task = facts["training"]
    say(f"  project: {facts['project'] or '-'}\n  models: {', '.join(facts['models']) or '-'}")
    say(f"  training: {task['status'] + ', ' + task['details'][-1] if task else '-'}")
    say(f"  images that wait for a model: {facts['waiting']}; sessions: {facts['sessions']}")
    rows = [(one["address"], str(one["requests"]), f"{one['seconds_ago']:.0f}") for one in facts["clients"]]
    say(table(("CLIENT", "REQUESTS", "SECONDS AGO"), rows) if rows else "  no client yet")

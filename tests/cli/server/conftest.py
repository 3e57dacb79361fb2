"""A real server in a process of its own, a project of CT phantoms, and two clients: plain HTTP and MONAI Label's."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import uuid
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("python_multipart")

BOUNDARY = "----------lImIt_of_THE_fIle_eW_$"
CLIENT_WHEEL = "monailabel==0.8.5"
PATIENCE_S = 600.0


def wait_for(true: Callable[[], Any], seconds: float = PATIENCE_S) -> Any:
    """Wait until something is true and return it."""
    until = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < until, "it did not come"
        time.sleep(0.05)
    return found


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def detail(self) -> str:
        return str(self.json["detail"])


@dataclass
class RunningServer:
    """A server and what it has written so far."""

    process: subprocess.Popen[bytes]
    url: str
    host: str
    port: int
    lines: list[str] = field(default_factory=list)
    temporary: Path = Path()

    def ask(self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> Answer:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=PATIENCE_S)
        try:
            connection.request(method, path, body=body, headers=headers or {})
            answer = connection.getresponse()
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def send_form(
        self, method: str, path: str, fields: dict[str, str], files: list[tuple[str, str, bytes]], **headers: str
    ) -> Answer:
        """Send a form as the client of MONAI Label does: with the names that files have at the client."""
        body = form_of(fields, files)
        kind = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
        return self.ask(method, path, body, {**kind, **headers})

    def leftovers(self) -> list[Path]:
        """Return the files of uploads that lie in the server's temporary folder."""
        return [path for path in self.temporary.rglob("*") if path.is_file() and "upload" in path.name]

    @property
    def log(self) -> str:
        return "\n".join(self.lines)


def form_of(fields: dict[str, str], files: list[tuple[str, str, bytes]]) -> bytes:
    parts = [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    parts += [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"; filename="{file_name}"\r\n'
        f"Content-Type: application/octet-stream\r\n\r\n".encode()
        + content
        + b"\r\n"
        for name, file_name, content in files
    ]
    return b"".join([*parts, f"--{BOUNDARY}--\r\n".encode()])


@contextmanager
def running_server(home: Path, *words: object, temporary: Path | None = None) -> Iterator[RunningServer]:
    """Run `fmseg serve` on a free port until the block ends; `temporary` is where its uploads lie."""
    temporary = temporary or home / f"tmp-{uuid.uuid4().hex[:8]}"
    temporary.mkdir(parents=True, exist_ok=True)
    places = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(temporary))
    environment = {**os.environ, **places, "FMSEG_HOME": str(home), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "napari_fmseg", "serve", *map(str, words), "--port", "0", "--device", "cpu"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    lines: list[str] = []
    reader = threading.Thread(target=_read, args=(process, lines), daemon=True)
    reader.start()
    try:
        wait_for(lambda: process.poll() is not None or any(" at http" in line for line in lines))
        assert process.poll() is None, "\n".join(lines)
        url = next(line for line in lines if " at http" in line).rpartition(" at ")[2].strip()
        host, _, port = url.partition("//")[2].rpartition(":")
        yield RunningServer(process, url, host, int(port), lines, temporary)
    finally:
        process.terminate()
        try:
            process.wait(30)
        finally:
            process.kill()
            reader.join(10)
            process.stdout.close()


def _read(process: subprocess.Popen[bytes], lines: list[str]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line.decode(errors="replace").rstrip())


@pytest.fixture(scope="session", name="form_of")
def form_of_fixture() -> Callable[..., bytes]:
    """Return the function that writes a form as the client of MONAI Label does."""
    return form_of


@pytest.fixture(scope="session", name="wait_for")
def wait_for_fixture() -> Callable[..., Any]:
    """Return the function that waits until something is true."""
    return wait_for


@pytest.fixture(scope="session")
def serve() -> Callable[..., Any]:
    """Return the context manager that runs a server: `with serve(home, ...) as server`."""
    return running_server


def balance(net: Any, example: Any, labels: dict[int, str]) -> None:
    """Scale the last layer of an untrained network, so that it finds each class about as often."""
    import torch

    ran: list[tuple[Any, Any]] = []
    layers = [layer for layer in net.modules() if isinstance(layer, torch.nn.Conv3d)]
    hooks = [layer.register_forward_hook(lambda layer, _, output: ran.append((layer, output))) for layer in layers]
    with torch.no_grad():
        net.eval()(example)
        last, output = ran[-1]
        mean, std = (measure(output, (0, 2, 3, 4)) for measure in (torch.mean, torch.std))
        last.weight /= std[:, None, None, None, None]
        last.bias.copy_((last.bias - mean) / std)
        for surplus in {*range(1, len(mean))} - {*labels}:
            last.bias[surplus] = -1000
    for hook in hooks:
        hook.remove()


@pytest.fixture(scope="session")
def save_tiny() -> Callable[..., Any]:
    """Return a function that saves an untrained model in a folder; its card can be changed."""

    def save(folder: Path, name: str, labels: dict[int, str], **changes: Any) -> Any:
        import torch

        from napari_fmseg.models.card import ModelCard, NetSpec
        from napari_fmseg.models.weights import save_model
        from napari_fmseg.nets import build

        spec = NetSpec("snet", {"in_channels": 1, "n_classes": 1 + max(labels), "width": 4})
        with torch.random.fork_rng():
            torch.manual_seed(3)
            net = build(spec.network, **spec.kwargs)
            balance(net, torch.rand(1, 1, 32, 32, 32), labels)
        settings = {"consensus_grid": (32, 32, 32), "attention_grid": (32, 32, 32)}
        facts = {"name": name, "title": name.title(), "pipeline": "phased", "nets": {"consensus": spec},
                 "labels": labels, "settings": settings, "licence": "Apache-2.0"}  # fmt: skip
        return save_model(ModelCard(**{**facts, **changes}), {"consensus": net}, folder)

    return save


@pytest.fixture(scope="session")
def make_project() -> Callable[..., Any]:
    """Return a function that makes a project of small CT phantoms, the last ones without labels."""

    def make(folder: Path, n_labelled: int = 5, n_unlabelled: int = 2) -> Any:
        from napari_fmseg import phantom_ct
        from napari_fmseg.core.volume import LabelMap
        from napari_fmseg.training.projects import LabelOptions, add_nameless, init_project

        project = init_project(folder, ("liver", "spleen"), channels=("CT",))
        for seed in range(n_labelled + n_unlabelled):
            image, truth = phantom_ct(seed, spacing=(12.0, 10.0, 10.0))
            own = {name: value for value, name in truth.names.items()}
            data = (truth.data == own["liver"]) * 1 + (truth.data == own["spleen"]) * 2
            labels = LabelMap(data.astype("uint8"), truth.geometry, {}, {1: "liver", 2: "spleen"})
            given = labels if seed < n_labelled else None
            project, _ = add_nameless(project, image, given, LabelOptions(unlabelled="nothing"))
        return project

    return make


# --- the real client


@pytest.fixture(scope="session")
def client_folder() -> Path:
    """Return a folder with the client of MONAI Label, from its wheel, which is fetched once."""
    if sys.version_info >= (3, 13):
        pytest.skip("the client of MONAI Label imports cgi, which Python 3.13 no longer has")
    pytest.importorskip("requests")
    user = getattr(os, "getuid", int)()
    folder = Path(tempfile.gettempdir()) / f"fmseg-tests-{CLIENT_WHEEL.replace('==', '-')}-{user}"
    if not (folder / "monailabel" / "client" / "client.py").exists():
        with tempfile.TemporaryDirectory() as temporary:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--retries", "0", "--timeout",
                       "30", "--dest", temporary, CLIENT_WHEEL]  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            wheels = list(Path(temporary).glob("*.whl"))
            if done.returncode or not wheels:
                pytest.skip(f"pip cannot fetch {CLIENT_WHEEL}: {done.stderr.strip().splitlines()[-1:]}")
            with zipfile.ZipFile(wheels[0]) as wheel:
                wheel.extractall(folder, [name for name in wheel.namelist() if _is_of_the_client(name)])
    return folder


def _is_of_the_client(name: str) -> bool:
    return name in ("monailabel/__init__.py", "monailabel/_version.py") or name.startswith("monailabel/client/")


DRIVER = """
import json, sys, warnings
warnings.simplefilter("ignore")
from monailabel.client import MONAILabelClient
client = MONAILabelClient(*sys.argv[1:])
for line in sys.stdin:
    call, args, options = json.loads(line)
    try:
        answer = {"value": getattr(client, call)(*args, **options)}
    except Exception as error:
        answer = {"error": getattr(error, "msg", None) or f"{type(error).__name__}: {error}"}
    print(json.dumps(answer, default=str), flush=True)
"""


class ClientError(Exception):
    """What the real client raised."""


class RealClient:
    """The client of MONAI Label in a process of its own."""

    def __init__(self, folder: Path, url: str, temporary: Path, client_id: str) -> None:
        environment = {**os.environ, "PYTHONPATH": str(folder)}
        words = [sys.executable, "-c", DRIVER, url, str(temporary), client_id]
        self._process = subprocess.Popen(
            words, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __getattr__(self, call: str) -> Callable[..., Any]:
        def ask(*args: Any, **options: Any) -> Any:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdin.write(json.dumps([call, args, options], default=str) + "\n")
            self._process.stdin.flush()
            answer = json.loads(self._process.stdout.readline())
            if "error" in answer:
                raise ClientError(answer["error"])
            return answer["value"]

        return ask

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()


@pytest.fixture
def real_client(client_folder: Path, tmp_path: Path) -> Iterator[Callable[..., RealClient]]:
    """Return a function that starts the real client for a server."""
    clients: list[RealClient] = []

    def start(url: str, client_id: str = "user-xyz") -> RealClient:
        temporary = tmp_path / f"client-{len(clients)}"
        temporary.mkdir()
        clients.append(RealClient(client_folder, url, temporary, client_id))
        return clients[-1]

    yield start
    for client in clients:
        client.close()

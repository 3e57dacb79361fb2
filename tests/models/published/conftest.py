"""A host on this machine that serves published models, and a guard that lets no request go anywhere else."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from napari_fmseg.models.published import PublishedModel
from napari_fmseg.models.published.download import RemoteFile

CARD = {
    "labels": {"1": "inside", "2": "outside"},
    "channels": ["T1"],
    "intensity": {"kind": "percentile", "low": 0.0, "high": 98.0},
    "settings": {"window": [32, 32, 32], "spacing_mm": [1.0, 1.0, 1.0]},
}
TEXTS = {
    "segments": "two made-up structures", "licence": "MIT", "citation": "Nobody, Nowhere 1 (2001).", "source": "here",
    "trained_on": "nothing", "limits": "Good for nothing.", "evidence": "made for this test",
}  # fmt: skip


@dataclass
class Host:
    """What is served, and what was asked for."""

    address: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    cut: bool = False  # whether every answer breaks off in its middle

    def remote(self, name: str, **changed: Any) -> RemoteFile:
        """Return the registered form of a file that is served."""
        content = self.files[name]
        right = RemoteFile(f"{self.address}/{name}", name, len(content), hashlib.sha256(content).hexdigest())
        return dataclasses.replace(right, **changed)

    def model(self, *names: str, **changed: Any) -> PublishedModel:
        """Return an entry with files that are served."""
        files = tuple(self.remote(name) for name in names)
        right = PublishedModel(
            "tiny-mr", "Two structures", "tfjs", files, **TEXTS, card=CARD, axes="LIA", modality="MR"
        )
        return dataclasses.replace(right, **changed)


@pytest.fixture
def host() -> Iterator[Host]:
    """Serve files from this machine."""
    served = Host()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.lstrip("/")
            served.asked.append(name)
            if name in served.redirects:
                self.send_response(302)
                self.send_header("Location", served.redirects[name])
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if name not in served.files:
                self.send_error(404)
                return
            content = served.files[name]
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if served.cut else content)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    served.address = f"http://127.0.0.1:{server.server_port}"
    yield served
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def addresses(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record every address that a connection or a look-up of a name goes to; others than this machine are refused."""
    seen: list[str] = []

    def guarded(real: Callable[..., Any], host_of: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            address = host_of(*args)
            seen.append(str(address))
            if address not in ("127.0.0.1", "localhost", "::1", None):
                raise AssertionError(f"something was to be sent to {address}")
            return real(*args, **kwargs)

        return call

    monkeypatch.setattr(socket, "getaddrinfo", guarded(socket.getaddrinfo, lambda host, *_: host))
    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, guarded(getattr(socket.socket, name), lambda _, address: address[0]))
    return seen


@pytest.fixture
def tiny_tfjs(host: Host) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Serve a small MeshNet in TensorFlow.js's files; returns its kernels (a, b, c, in, out) and biases."""
    rng = np.random.default_rng(5)
    widths, dilations = (1, 3, 3, 3), (1, 2, 1)
    kernels = [rng.normal(0, 0.3, (3, 3, 3, a, b)) for a, b in itertools.pairwise(widths)]
    kernels.append(rng.normal(0, 0.5, (1, 1, 1, widths[-1], 3)))
    kernels = [kernel.astype("<f4") for kernel in kernels]
    biases = [rng.normal(0, 0.1, kernel.shape[-1]).astype("<f4") for kernel in kernels]
    layers: list[dict[str, Any]] = [{"class_name": "InputLayer", "config": {"name": "input"}}]
    weights, content = [], b""
    for i, (kernel, bias) in enumerate(zip(kernels, biases, strict=True)):
        name, dilation = f"conv{i}", [*dilations, 1][i]
        layers.append({"class_name": "Conv3D", "config": {
            "name": name, "kernel_size": list(kernel.shape[:3]), "strides": [1, 1, 1], "padding": "same",
            "activation": "linear", "use_bias": True, "dilation_rate": [dilation] * 3}})  # fmt: skip
        if i + 1 < len(kernels):
            layers.append({"class_name": "Activation", "config": {"name": f"elu{i}", "activation": "elu"}})
        for part, values in (("kernel", kernel), ("bias", bias)):
            weights.append({"name": f"{name}/{part}", "shape": list(values.shape), "dtype": "float32"})
            content += values.tobytes()
    table = {
        "modelTopology": {"model_config": {"config": {"layers": layers}}},
        "weightsManifest": [{"paths": ["model.bin"], "weights": weights}],
    }
    host.files |= {"model.json": json.dumps(table).encode(), "model.bin": content}
    return kernels, biases


@pytest.fixture
def own_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Point the folder of the user's models, and that of temporary files, into the test's own."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("FMSEG_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    return tmp_path / "home" / "models"

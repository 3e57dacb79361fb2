"""A server on the loopback that speaks the protocol of nnInteractive's server, with the client's own serialisation."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

pytest.importorskip("nnInteractive", reason="nninteractive-client is not installed")
pytest.importorskip("napari")


class Stub:
    """What the server knows and was asked; "finds" a ball around a point, what a box, a scribble or a lasso holds."""

    def __init__(self) -> None:
        self.image: Any = None
        self.found: Any = None
        self.before: list[Any] = []
        self.prompts: list[tuple[str, bool, Any]] = []
        self.key = ""
        self.licence = "CC BY-NC-SA 4.0"
        self.leases = 0
        self.most = 2
        self.expired = False

    def answer(self, kind: str, include: bool, told: Any, mask: Any) -> tuple[dict[str, Any], Any]:
        self.prompts.append((kind, include, told))
        self.before.append(self.found.copy())
        self.found[mask] = int(include)
        box = [[0, n] for n in self.found.shape]
        return {"ran_prediction": True, "bbox": box}, self.found


@pytest.fixture
def stub() -> Iterator[Any]:
    from nnInteractive.inference.remote import _protocol as wire
    from nnInteractive.inference.remote.serialization import pack_array, unpack_array

    known = Stub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def reply(self, status: int, body: bytes = b"{}", **headers: str) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def tell(self, facts: dict[str, Any]) -> None:
            self.reply(200, json.dumps(facts).encode())

        def refused(self) -> bool:
            if known.key and self.headers.get("Authorization") != f"Bearer {known.key}":
                self.reply(401, b'{"detail": "Invalid bearer token"}')
            elif known.expired and self.path not in (wire.PATH_CLAIM, wire.PATH_RELEASE):
                self.reply(410, b'{"detail": "lease expired or unknown"}')
            else:
                return False
            return True

        def do_GET(self) -> None:
            if not self.refused():
                assert self.path == wire.PATH_CAPABILITIES
                self.tell(
                    {
                        "supported_interactions": {"points": True, "bbox2d": True, "scribble": True, "lasso": True},
                        "channel_mapping": {},
                        "num_interaction_channels": 7,
                        "supports_initial_label": True,
                        "supports_zero_shot_label_refinement": False,
                        "preferred_scribble_thickness": 2,
                        "interaction_decay": 0.9,
                        "inference_session_version": 2,
                        "license": known.licence,
                        "supports_undo": True,
                    }
                )

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.refused():
                return
            meta = json.loads(self.headers.get(wire.META_HEADER) or "{}")
            if self.path == wire.PATH_CLAIM:
                if known.leases >= known.most:
                    self.reply(503, b'{"detail": "server is at capacity"}')
                    return
                known.leases += 1
                self.tell({"lease_token": "x", "idle_timeout_seconds": 600.0, "liveness_timeout_seconds": 0.0})
            elif self.path == wire.PATH_RELEASE:
                known.leases -= 1
                self.tell({})
            elif self.path == wire.PATH_SET_IMAGE:
                known.image = unpack_array(body)
                self.tell({"original_image_shape": list(known.image.shape)})
            elif self.path == wire.PATH_SET_TARGET_BUFFER:
                facts = json.loads(body)
                known.found = np.zeros(facts["shape"], facts["dtype"])
                self.tell({})
            elif self.path == wire.PATH_RESET_INTERACTIONS:
                known.found[...] = 0
                known.before.clear()
                self.tell({})
            else:
                self.predict(body, meta)

        def predict(self, body: bytes, meta: dict[str, Any]) -> None:
            if self.path == wire.PATH_UNDO:
                known.found[...] = known.before.pop()
                answer = {"ran_prediction": True, "bbox": [[0, n] for n in known.found.shape]}, known.found
            elif self.path == wire.PATH_ADD_POINT:
                facts = json.loads(body)
                at = np.array(facts["coordinates"]).reshape(3, 1, 1, 1)
                ball = ((np.indices(known.found.shape) - at) ** 2).sum(0) <= 4
                answer = known.answer("point", facts["include_interaction"], facts["coordinates"], ball)
            elif self.path == wire.PATH_ADD_BBOX:
                facts = json.loads(body)
                mask = np.zeros(known.found.shape, bool)
                mask[tuple(slice(a, b) for a, b in facts["bbox_coords"])] = True
                answer = known.answer("box", facts["include_interaction"], facts["bbox_coords"], mask)
            else:
                kind = {wire.PATH_ADD_SCRIBBLE: "scribble", wire.PATH_ADD_LASSO: "lasso"}[self.path]
                mask = unpack_array(body) > 0
                answer = known.answer(kind, meta["include_interaction"], int(mask.sum()), mask)
            facts, found = answer
            self.reply(200, pack_array(found), **{wire.META_HEADER: json.dumps(facts)})

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, name="stub of nnInteractive")
    thread.start()
    known.address = f"http://127.0.0.1:{server.server_address[1]}"  # type: ignore[attr-defined]
    yield known
    server.shutdown()
    thread.join()
    server.server_close()

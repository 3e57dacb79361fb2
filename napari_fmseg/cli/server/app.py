"""The application: its routes, the gate before them, and errors in words for people."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from napari_fmseg.cli.exit_codes import _DEFECT, _defect_in_words, _explain
from napari_fmseg.cli.server.record import STATUS_PATH
from napari_fmseg.cli.server.routes import ENDPOINTS, Endpoint, address_of, not_offered
from napari_fmseg.cli.server.service import Service
from napari_fmseg.core.errors import LabelsChanged, UnknownModel, UnwritableVolume
from napari_fmseg.core.processes import without_paths
from napari_fmseg.io.file_lock import Busy

__all__ = ["Log", "build_app"]

Log = Callable[[str], None]

_FREE = ("/", "/auth/", "/auth/token")
"""What is answered without a token."""

_LOOK_FOR_EXPIRED_S = 30.0
_KIND = "fmseg path"  # of a route, without what a client put into it


def build_app(service: Service, log: Log) -> Starlette:
    """Build the application around a service.

    Parameters
    ----------
    service
        What the requests share.
    log
        Takes a line for each request: method, kind of request, status and seconds. Neither names of images nor
        what clients sent is in it.
    """
    middleware = [Middleware(_Gate, service=service, log=log)]
    if service.guard.origins:
        origins = list(service.guard.origins)
        cors = Middleware(CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"])
        middleware.insert(0, cors)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        sweeping = asyncio.create_task(_end_expired(service))
        yield
        sweeping.cancel()
        with suppress(asyncio.CancelledError):
            await sweeping

    routes = [Route(path, _answering(path, endpoint, log), methods=[method]) for method, path, endpoint in ENDPOINTS]
    others = _answering("(another path)", not_offered, log)
    app = Starlette(
        routes=[*routes, Route("/{path:path}", others, methods=["GET", "POST", "PUT", "DELETE"])],
        middleware=middleware,
        exception_handlers={HTTPException: _as_json},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    app.state.service = service
    return app


async def _end_expired(service: Service) -> None:
    while True:
        await asyncio.sleep(_LOOK_FOR_EXPIRED_S)
        service.sessions.end_expired()


def _answering(path: str, endpoint: Endpoint, log: Log) -> Endpoint:
    """Return an endpoint whose errors are answers, and that is called `path` in the log."""

    async def answer(request: Request) -> Response:
        request.scope[_KIND] = path
        try:
            return await endpoint(request)
        except HTTPException as error:
            return _as_json(request, error)
        except ClientDisconnect:
            return Response(status_code=400)  # nobody reads it
        except Exception as error:  # noqa: BLE001 - the boundary of a request: the server goes on
            code, text = _explain(error)
            if code == _DEFECT:
                log(f"defect: {_defect_in_words(error)}")
                text = "A defect of the server, not of your input. Its terminal says where."
            return JSONResponse({"detail": without_paths(text)}, _status_of(error, code))

    return answer


def _status_of(error: Exception, code: int) -> int:
    match error:
        case LabelsChanged():
            return 409
        case UnknownModel():
            return 404
        case Busy():
            return 503
        case UnwritableVolume():
            return 507
    return {3: 503, _DEFECT: 500}.get(code, 422)


def _as_json(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"detail": error.detail}, error.status_code, headers=error.headers)


class _Gate:
    """Lets requests through that may be answered, counts them and writes a line for each."""

    def __init__(self, app: ASGIApp, service: Service, log: Log) -> None:
        self._app, self._service, self._log = app, service, log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request, start, status = Request(scope), time.perf_counter(), 0

        async def note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        refused = self._refuse(request)
        if request.url.path != STATUS_PATH:
            self._service.count(address_of(request))
        await (refused or self._app)(scope, receive, note_status)
        if request.url.path != STATUS_PATH:
            seconds = time.perf_counter() - start
            self._log(f"{request.method} {scope.get(_KIND, '(refused)')} {status or 'gone'} {seconds:.2f} s")

    def _refuse(self, request: Request) -> Response | None:
        """Return why a request is not answered, or None."""
        guard, path = self._service.guard, request.url.path
        if not guard.allows_host(request.headers.get("host", "")):
            return JSONResponse({"detail": "This server answers to localhost and 127.0.0.1 only."}, 421)
        if not guard.allows_origin(request.headers.get("origin", "")):
            text = "Web pages may not use this server. Start it with --origin and the address of the page to allow it."
            return JSONResponse({"detail": text}, 403)
        if path == STATUS_PATH:
            known = hmac.compare_digest(request.headers.get("x-fmseg-key", "").encode(), self._service.key.encode())
            return None if known and self._service.key else JSONResponse({"detail": "Not found."}, 404)
        if path in _FREE or guard.allows(request.headers.get("authorization", "")):
            return None
        case = request.query_params.get("image", "")
        if path == "/datastore/image" and request.method == "GET" and guard.is_granted(address_of(request), case):
            return None
        text = "A token is needed. Log in with any user name and the server's token as the password."
        return JSONResponse({"detail": text}, 401, headers={"WWW-Authenticate": "Bearer"})

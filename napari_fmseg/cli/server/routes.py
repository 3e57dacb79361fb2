"""The requests of the MONAI Label protocol, one function each."""

from __future__ import annotations

import json
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response

from napari_fmseg.cli.server.access import is_loopback
from napari_fmseg.cli.server.cases import FINAL, Client
from napari_fmseg.cli.server.record import STATUS_PATH
from napari_fmseg.cli.server.service import InferResult, Service
from napari_fmseg.cli.server.uploads import Form, receive_form
from napari_fmseg.core.package import __version__
from napari_fmseg.io import suffix_of
from napari_fmseg.training.projects import TrainingOptions

__all__ = ["ENDPOINTS", "Endpoint", "address_of", "service_of"]

Endpoint = Callable[[Request], Awaitable[Response]]

_STRATEGIES = {
    "uncertainty": "The image that the project's model is least sure of",
    "random": "Any image without labels",
}
_MOST_JSON_BYTES = 1 << 20


def service_of(request: Request) -> Service:
    """Return the service that the application belongs to."""
    service: Service = request.app.state.service
    return service


def address_of(request: Request) -> str:
    """Return the address that a request comes from."""
    return request.client.host if request.client is not None else ""


def _client_of(request: Request, params: Mapping[str, Any] | None = None) -> Client:
    bearer = request.headers.get("authorization", "")
    login = sha256(bearer.encode()).hexdigest()[:16] if bearer else ""
    return Client(address_of(request), login, str((params or {}).get("client_id") or "")[:200])


# --- who may


async def auth(request: Request) -> Response:
    """Return whether a token is needed."""
    return JSONResponse({"enabled": service_of(request).guard.is_enabled, "client_id": "fmseg", "realm": "fmseg"})


async def log_in(request: Request) -> Response:
    """Exchange the token, given as the password, for a bearer token; the name of the user does not matter."""
    body = await _body(request)
    words = parse_qs(body.decode("utf-8", "replace"))
    bearer = service_of(request).guard.log_in(words.get("password", [""])[0])
    if bearer is None:
        raise HTTPException(401, "The password is wrong. It is the token of the server: ask who started it.")
    return JSONResponse({"access_token": bearer, "token_type": "bearer"})


async def valid_login(request: Request) -> Response:
    """Answer, which the gate allows only with a token."""
    return JSONResponse({"username": "fmseg"})


# --- what there is


async def home(request: Request) -> Response:
    """Return what this is, for a person with a browser."""
    return PlainTextResponse(
        "fmseg serve: give this address to 3D Slicer's MONAI Label module or to OHIF.\n"
        "Research use only. Not a medical device.\n"
    )


async def info(request: Request) -> Response:
    """Return what the server offers."""
    return JSONResponse(await run_in_threadpool(_info, service_of(request)))


def _info(service: Service) -> dict[str, Any]:
    models = service.models()
    told: dict[str, Any] = {
        "name": "napari-fmseg",
        "description": "Research use only. Not a medical device.",
        "version": __version__,
        "labels": list(dict.fromkeys(name for model in models for name in model.labels)),
        "models": {model.name: model.as_json() for model in models},
        "trainers": {},
        "strategies": {},
        "scoring": {},
        "train_stats": {},
        "datastore": {"total": 0, "completed": 0, "label_tags": {}},
    }
    if service.cases is None:
        return told
    trainer, last = service.trainer(), service.need_rounds().last
    classes = service.cases.open().facts.labels
    return told | {
        "labels": list(dict.fromkeys([*classes.values(), *told["labels"]])),
        "trainers": {
            trainer: {
                "description": "Learns from the labels of the project; held-out images are never among them. The new "
                "version is used if it is better.",
                "config": {"minutes": service.training.minutes},
                "labels": list(classes.values()),
            }
        },
        "strategies": {name: {"description": text} for name, text in _STRATEGIES.items()},
        "train_stats": {} if last is None else {trainer: last.stats()},
        "datastore": service.cases.counts(),
    }


async def status(request: Request) -> Response:
    """Return how the server is to a program of its user; the gate has looked at the key."""
    return JSONResponse(await run_in_threadpool(service_of(request).status))


# --- inference


async def infer(request: Request) -> Response:
    """Segment an image of the server, of a session, or that comes with the request."""
    service, query = service_of(request), request.query_params
    model = await run_in_threadpool(service.model, request.path_params["model"])
    with service.folder_for_request() as folder:
        form = await receive_form(request, folder, service.most_bytes)
        params = _params(form)
        images: tuple[Path, ...]
        series: str | None = None
        if query.get("session_id"):
            session = service.sessions.find(query["session_id"])
            if session is None:
                raise HTTPException(404, "The session has ended. Upload the image again.")
            images = (session.image,)
        elif "file" in form.files:
            images = tuple(form.files["file"])
        else:
            given, client = query.get("image", ""), _client_of(request, params)
            images, series = await run_in_threadpool(service.images, given, client)
        suffix = str(params.get("result_extension") or "")
        result = await service.infer(model, images, series, suffix, request)
    return _answer(result, query.get("output", ""))


def _answer(result: InferResult, output: str) -> Response:
    name = f"labels-{secrets.token_hex(4)}{result.suffix}"
    if output == "json":
        return JSONResponse(result.params)
    if output == "image":
        shown = {"Content-Disposition": f'attachment; filename="{name}"'}
        return Response(result.content, media_type="application/octet-stream", headers=shown)
    if output not in ("", "all"):
        raise HTTPException(422, f"The output is all, image or json, not {output[:20]!r}.")
    boundary = secrets.token_hex(16)
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="params"\r\nContent-Type: application/json\r\n\r\n'
        f"{json.dumps(result.params)}\r\n"
        f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    )
    body = b"".join((head.encode(), result.content, f"\r\n--{boundary}--\r\n".encode()))
    return Response(body, media_type=f"multipart/form-data; boundary={boundary}")


# --- sessions


async def open_session(request: Request) -> Response:
    """Keep an uploaded image for a while."""
    service = service_of(request)
    with service.folder_for_request() as folder:
        form = await receive_form(request, folder, service.most_bytes)
        if not form.files:
            raise HTTPException(422, "The form has no file. Expected the image as a file.")
        wanted = request.query_params.get("expiry", "")
        session = service.sessions.open(folder, float(wanted) if wanted.isdecimal() else None)
    return JSONResponse({"session_id": session.name, "session_info": session.as_json()})


async def find_session(request: Request) -> Response:
    """Return the facts of a session; none of one that has ended, upon which 3D Slicer uploads the image again."""
    session = service_of(request).sessions.find(request.path_params["session"])
    return JSONResponse({} if session is None else session.as_json())


async def close_session(request: Request) -> Response:
    """End a session."""
    if not service_of(request).sessions.close(request.path_params["session"]):
        raise HTTPException(404, "There is no such session, or it has ended.")
    return JSONResponse({})


# --- images and labels


async def datastore(request: Request) -> Response:
    """List the cases."""
    cases, output = service_of(request).cases, request.query_params.get("output", "stats")
    if cases is None:
        empty: dict[str, Any] = {"name": "", "description": "", "images_dir": "", "labels_dir": "", "objects": {}}
        counts = {"total": 0, "completed": 0, "label_tags": {}}
        return JSONResponse({"all": empty, "train": []}.get(output, counts))
    listing = {"all": cases.listing, "train": cases.pairs, "stats": cases.counts}.get(output)
    if listing is None:
        raise HTTPException(422, f"The output is all, train or stats, not {output[:20]!r}.")
    return JSONResponse(await run_in_threadpool(listing))


async def upload_image(request: Request) -> Response:
    """Add an image."""
    service, given = service_of(request), request.query_params.get("image", "")
    with service.folder_for_request() as folder:
        form = await receive_form(request, folder, service.most_bytes)
        file = form.file("file")
        if file is None:
            raise HTTPException(422, "The form has no file. Expected the image as the file 'file'.")
        client = _client_of(request, _params(form))
        name = await run_in_threadpool(service.upload, file, folder, given, client)
    return JSONResponse({"image": name})


async def download_image(request: Request) -> Response:
    """Send the image of a case; of several channels the first."""
    cases, client = service_of(request).need_cases(), _client_of(request)
    name = await run_in_threadpool(cases.resolve, request.query_params.get("image", ""), client)
    path = (await run_in_threadpool(cases.images, name))[0]
    if not path.is_file():
        raise HTTPException(404, f"The image of {name} is not there. Is its drive connected to the server?")
    await run_in_threadpool(cases.note_seen, name, client)
    return FileResponse(path, media_type="application/octet-stream", filename=f"{name}{suffix_of(path)}")


async def image_info(request: Request) -> Response:
    """Return the facts of the image of a case."""
    return await _object(request, request.query_params.get("image", ""), "image")


async def label_info(request: Request) -> Response:
    """Return the facts of the labels of a case."""
    return await _object(request, request.query_params.get("label", ""), "labels")


async def _object(request: Request, given: str, part: str) -> Response:
    cases = service_of(request).need_cases()
    name = await run_in_threadpool(cases.resolve, given, _client_of(request))
    found = (await run_in_threadpool(cases.listing))["objects"][name][part]
    if part == "labels":
        found = found.get(request.query_params.get("tag") or FINAL)
        if found is None:
            raise HTTPException(404, "The case has no labels under this tag.")
    return JSONResponse(found["info"])


async def submit_label(request: Request) -> Response:
    """Save labels of a case."""
    service, query = service_of(request), request.query_params
    cases = service.need_cases()
    if query.get("tag", FINAL) not in ("", FINAL):
        raise HTTPException(422, f"Labels are saved under the tag {FINAL!r} only.")
    with service.folder_for_request() as folder:
        form = await receive_form(request, folder, service.most_bytes)
        file, params = form.file("label"), _params(form)
        if file is None:
            raise HTTPException(422, "The form has no file. Expected the labels as the file 'label'.")
        client, entries = _client_of(request, params), params.get("label_info") or []
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise HTTPException(422, "label_info is a list with an entry for each segment, each with a name.")
        name = await run_in_threadpool(cases.resolve, query.get("image", ""), client)
        await run_in_threadpool(cases.submit, name, file, entries, client)
    return JSONResponse({"image": query.get("image", ""), "label": name})


async def download_label(request: Request) -> Response:
    """Send the labels of a case, with values 1, 2, 3..."""
    service, query = service_of(request), request.query_params
    cases, client = service.need_cases(), _client_of(request)
    name = await run_in_threadpool(cases.resolve, query.get("label", ""), client)
    tag = query.get("tag") or FINAL
    with service.folder_for_request() as folder:
        path = await run_in_threadpool(cases.labels_file, name, tag, folder)
        content = path.read_bytes()
    await run_in_threadpool(cases.note_seen, name, client)
    shown = {"Content-Disposition": f'attachment; filename="label-{secrets.token_hex(4)}.nii.gz"'}
    return Response(content, media_type="application/octet-stream", headers=shown)


async def next_sample(request: Request) -> Response:
    """Name the image to label next."""
    service, strategy = service_of(request), request.path_params["strategy"]
    cases, params = service.need_cases(), await _json(request)
    if strategy not in _STRATEGIES:
        raise HTTPException(404, f"There is no such strategy. There are: {', '.join(_STRATEGIES)}.")
    name = await run_in_threadpool(cases.next, strategy, _client_of(request, params))
    if not name:
        return JSONResponse({})
    path = cases.images(name)[0]
    service.guard.grant(address_of(request), name)
    told = {"id": name, "name": f"{name}{suffix_of(path)}"}
    if is_loopback(address_of(request)):
        told["path"] = str(path)
    return JSONResponse(told)


# --- training


async def training(request: Request) -> Response:
    """Return the state of the training."""
    service, query = service_of(request), request.query_params
    last = service.rounds.last if service.rounds is not None else None
    running = service.rounds is not None and service.rounds.is_running
    if query.get("all", "").lower() == "true":
        return JSONResponse([] if last is None else [last.as_json()])
    if last is None or (query.get("check_if_running", "").lower() == "true" and not running):
        raise HTTPException(404, "No training is running." if last is not None else "Nothing was trained yet.")
    return JSONResponse(last.as_json())


async def start_training(request: Request) -> Response:
    """Start a training of the project's model."""
    service = service_of(request)
    rounds, trainer = service.need_rounds(), await run_in_threadpool(service.trainer)
    params = await _json(request)
    model = request.path_params.get("model")
    if model is not None and model != trainer:
        raise HTTPException(404, f"Only the project's model can be trained here: {trainer}.")
    if model is None:
        params = params[trainer] if isinstance(params.get(trainer), dict) else params
    started = rounds.start(trainer, _training_options(service, params))
    if started is None:
        raise HTTPException(429, "A training is running already. Stop it first, or wait for its end.")
    told = started.as_json()
    return JSONResponse(told if model is not None else {trainer: {"result": told, "detail": ""}})


def _training_options(service: Service, params: Mapping[str, Any]) -> TrainingOptions:
    try:
        minutes = float(str(params.get("minutes") or service.training.minutes).replace(",", "."))
    except ValueError as error:
        raise HTTPException(422, "minutes is a number, such as 5.") from error
    return replace(service.training, minutes=minutes)


async def stop_training(request: Request) -> Response:
    """Stop the training; what it has learned is measured and kept."""
    stopped = await run_in_threadpool(service_of(request).need_rounds().stop)
    return JSONResponse(None if stopped is None else stopped.as_json())


async def not_offered(request: Request) -> Response:
    """Refuse what the protocol has and this server does not, and say what there is instead."""
    raise HTTPException(
        404, "This server does not offer that. Models are installed with `fmseg models import`, cases are removed with "
        "`fmseg project remove`, many volumes are segmented with `fmseg segment`, and its log is in its terminal."
    )  # fmt: skip


# --- bodies


async def _body(request: Request) -> bytes:
    """Read a small body."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MOST_JSON_BYTES:
            raise HTTPException(413, "The request is larger than 1 MiB.")
    return bytes(body)


async def _json(request: Request) -> dict[str, Any]:
    return _object_in(await _body(request))


def _params(form: Form) -> dict[str, Any]:
    """Return the parameters of a form; the fields of one that has no "params" are taken themselves."""
    return _object_in(form.fields["params"].encode()) if "params" in form.fields else dict(form.fields)


def _object_in(text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text or b"{}")
    except ValueError as error:
        raise HTTPException(422, "The parameters cannot be read. Expected a JSON object.") from error
    if not isinstance(found, dict):
        raise HTTPException(422, "The parameters are a JSON object, such as {}.")
    return found


ENDPOINTS: tuple[tuple[str, str, Endpoint], ...] = (
    ("GET", "/", home),
    ("GET", "/auth/", auth),
    ("POST", "/auth/token", log_in),
    ("GET", "/auth/token/valid", valid_login),
    ("GET", "/info/", info),
    ("GET", STATUS_PATH, status),
    ("POST", "/infer/{model}", infer),
    ("PUT", "/session/", open_session),
    ("GET", "/session/{session}", find_session),
    ("DELETE", "/session/{session}", close_session),
    ("GET", "/datastore/", datastore),
    ("PUT", "/datastore/", upload_image),
    ("PUT", "/datastore/image", upload_image),
    ("GET", "/datastore/image", download_image),
    ("GET", "/datastore/image/info", image_info),
    ("PUT", "/datastore/label", submit_label),
    ("GET", "/datastore/label", download_label),
    ("GET", "/datastore/label/info", label_info),
    ("POST", "/activelearning/{strategy}", next_sample),
    ("GET", "/train/", training),
    ("POST", "/train/", start_training),
    ("POST", "/train/{model}", start_training),
    ("DELETE", "/train/", stop_training),
)
"""Method, path and function of every request; GET answers HEAD, too."""

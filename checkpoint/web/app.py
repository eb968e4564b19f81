"""The HTTP side of the service: a status page without scripts, a JSON API, health and metrics.

Every answer comes from the status of the last look, so that a request costs no look at the disk but for the points of a
curve. The routes know runs by the names in that status; no path is ever made from what a request says.
"""

from __future__ import annotations

import datetime
import time
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qs, quote

from fastapi import Depends, FastAPI, Header, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, ValidationError

from checkpoint.manifest import CheckpointError
from checkpoint.service import Service
from checkpoint.status import RunStatus, ServiceStatus
from checkpoint.web.access import Gate, Token, bearer
from checkpoint.web.actions import Action, UnknownTargetError, carry_out
from checkpoint.web.curve import draw, read_points
from checkpoint.web.metrics import render

SHOWN_CURVES = 30  # on the front page; every run has a page of its own
_NOT_READY_AFTER_POLLS = 20


class Answer(BaseModel):
    """What an action did."""

    message: str


def make_app(service: Service, *, token: Token | None) -> FastAPI:
    """The application. Without a token nothing can be acted on."""
    app = FastAPI(
        title="SmolLM2 checkpoint service", version="1", docs_url=None, redoc_url=None, openapi_url="/api/openapi.json"
    )
    app.add_middleware(Gate, config=service.config.http, token=token)
    _add_errors(app)
    _add_health(app, service)
    _add_api(app, service, token)
    _add_pages(app, service, token)
    return app


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(UnknownTargetError)
    def unknown(_: Request, error: UnknownTargetError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, status_code=404)

    @app.exception_handler(CheckpointError)
    def refused(_: Request, error: CheckpointError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, status_code=409)

    @app.exception_handler(OSError)
    def failed(_: Request, error: OSError) -> JSONResponse:
        # the disk's trouble, such as a full one; it is ours to mend and not the asker's
        return JSONResponse({"detail": error.strerror or "the disk failed"}, status_code=503)

    @app.exception_handler(RequestValidationError)
    def malformed(_: Request, error: RequestValidationError) -> JSONResponse:
        # what was sent is not sent back
        return JSONResponse({"detail": _problems(error.errors())}, status_code=422)


def _problems(errors: Any) -> str:
    return "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in errors)


def _add_health(app: FastAPI, service: Service) -> None:
    @app.get("/healthz", response_class=PlainTextResponse)
    def healthz() -> str:
        """The process answers."""
        return "ok\n"

    @app.get("/readyz", response_class=PlainTextResponse)
    def readyz() -> Response:
        """The service has looked at the runs, and not too long ago."""
        age_s = time.time() - service.status.looked_s
        if age_s > _NOT_READY_AFTER_POLLS * service.config.poll_seconds:
            return PlainTextResponse("the runs have not been looked at lately\n", status_code=503)
        return PlainTextResponse("ok\n")

    @app.get("/metrics", response_class=PlainTextResponse)
    def metrics() -> Response:
        """For Prometheus."""
        return Response(render(service.status), media_type=CONTENT_TYPE_LATEST)


def _add_api(app: FastAPI, service: Service, token: Token | None) -> None:
    def may_act(authorization: Annotated[str, Header()] = "") -> None:
        check_token(token, bearer(authorization))

    @app.get("/api/status")
    def status() -> ServiceStatus:
        """All runs, the queue and the disk."""
        return service.status

    @app.get("/api/runs/{name}")
    def run(name: str) -> RunStatus:
        """One run."""
        return _status_of(service, name)

    @app.post("/api/actions", dependencies=[Depends(may_act)], status_code=202)
    def act(action: Action) -> Answer:
        """Export now, verify, evaluate, pin or unpin a checkpoint. Needs `Authorization: Bearer TOKEN`."""
        return Answer(message=carry_out(service, action))


def check_token(token: Token | None, given: str | None) -> None:
    """Raises the HTTP error of a missing or wrong token."""
    if token is None:
        raise HTTPException(403, "actions are off: the service was started without a token")
    if given is None or not token.matches(given):
        raise HTTPException(401, "the token is missing or wrong", headers={"www-authenticate": "Bearer"})


def _add_pages(app: FastAPI, service: Service, token: Token | None) -> None:
    pages = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")), autoescape=True, undefined=StrictUndefined
    )
    pages.filters |= {"size": _size, "ago": _ago, "count": "{:,}".format}
    front, single = pages.get_template("front.html"), pages.get_template("run.html")

    def curve(name: str) -> Any:
        folder = {folder.name: folder for folder in service.run_folders()}.get(name)
        return draw(read_points(folder)) if folder is not None else ""

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    def show_all() -> str:
        status = service.status
        runs = sorted(status.runs, key=lambda run: (not run.troubles, run.state != "running", run.name))
        return front.render(status=status, runs=runs, curve=curve, shown_curves=SHOWN_CURVES, can_act=token is not None)

    @app.get("/runs/{name}", response_class=HTMLResponse, include_in_schema=False)
    def show_run(name: str, said: str = "") -> str:
        run = _status_of(service, name)
        return single.render(status=service.status, run=run, curve=curve, said=said[:300], can_act=token is not None)

    @app.post("/runs/{name}/act", include_in_schema=False)
    async def act(name: str, request: Request) -> Response:
        try:
            fields = parse_qs((await request.body()).decode(), keep_blank_values=True, max_num_fields=8)
            given = {key: values[-1] for key, values in fields.items()}
            check_token(token, given.pop("token", None))
            said = carry_out(service, Action.model_validate({**given, "run": name}))
        except ValidationError as error:
            return PlainTextResponse(_problems(error.errors()), status_code=422)
        except (UnicodeDecodeError, ValueError) as error:
            if isinstance(error, CheckpointError):
                raise
            return PlainTextResponse("not a form\n", status_code=422)
        return RedirectResponse(f"/runs/{quote(name)}?said={quote(said)}", status_code=303)


def _status_of(service: Service, name: str) -> RunStatus:
    for run in service.status.runs:
        if run.name == name:
            return run
    raise UnknownTargetError(f"there is no run {name!r}")


def _size(size_bytes: int) -> str:
    size = float(size_bytes)
    for unit in ("bytes", "KB", "MB", "GB"):
        if size < 1000:
            return f"{size:,.0f} {unit}" if unit == "bytes" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:,.1f} TB"


def _ago(time_s: float) -> str:
    if not time_s:
        return "never"
    return f"{datetime.timedelta(seconds=int(time.time() - time_s))} ago"

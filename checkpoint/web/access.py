"""Who may read and who may act: tokens, host names and the size of requests. Knows nothing of runs.

Reading is open on this machine itself and needs the token elsewhere, as `Authorization: Bearer TOKEN` or as the
password of HTTP Basic, which a browser asks for. Acting always needs the token, given on purpose: as Bearer or as a
field of the form, but not as Basic, which a browser would also send for a form on another site.
"""

from __future__ import annotations

import base64
import binascii
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from checkpoint.config import LOCAL_HOSTS, HttpConfig
from checkpoint.manifest import CheckpointError

MAX_BODY_BYTES = 4096
MIN_TOKEN_CHARACTERS = 16
OPEN_PATHS = ("/healthz", "/readyz")
_HEADERS = {
    b"cache-control": b"no-store",
    b"content-security-policy": b"default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'; "
    b"frame-ancestors 'none'",
    b"referrer-policy": b"no-referrer",
    b"x-content-type-options": b"nosniff",
}


@dataclass(frozen=True)
class Token:
    """A secret; it is never part of a text of ours, `repr` included."""

    _text: str

    def __repr__(self) -> str:
        return "Token(…)"

    def matches(self, given: str) -> bool:
        """In a time that does not tell how much of it was right."""
        return secrets.compare_digest(self._text.encode(), given.encode("utf-8", "surrogateescape"))


def read_token(config: HttpConfig, environment: Mapping[str, str]) -> Token | None:
    """The token that the config's file or environment variable holds.

    Raises CheckpointError if it is missing where it is needed, or too short to be one.
    """
    where = str(config.token_file) if config.token_file else config.token_environment_variable
    try:
        text = (
            config.token_file.read_text(encoding="utf-8")
            if config.token_file
            else environment.get(config.token_environment_variable, "")
        ).strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise CheckpointError(f"http.token_file={where} cannot be read: {reason}") from None
    if text and len(text) < MIN_TOKEN_CHARACTERS:
        raise CheckpointError(
            f"the token in {where} has {len(text)} characters, wanted {MIN_TOKEN_CHARACTERS} or more; make one with "
            "`openssl rand -hex 32`"
        )
    if not text and not config.is_local:
        raise CheckpointError(
            f"http.host={config.host} is reached from elsewhere, which needs a token: set {where}, or use 127.0.0.1"
        )
    return Token(text) if text else None


def bearer(authorization: str) -> str | None:
    """The token of an `Authorization: Bearer` header."""
    scheme, _, given = authorization.partition(" ")
    return given.strip() if scheme.lower() == "bearer" else None


class Gate:
    """ASGI middleware: refuses what may not pass, before anything of it is read."""

    def __init__(self, app: ASGIApp, *, config: HttpConfig, token: Token | None) -> None:
        self._app, self._config, self._token = app, config, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = self._refusal(scope["path"], headers)
        if refusal is not None:
            await refusal(scope, receive, _with_headers(send))
            return
        await self._app(scope, _LimitedBody(receive).receive, _with_headers(send))

    def _refusal(self, path: str, headers: Mapping[str, str]) -> PlainTextResponse | None:
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > MAX_BODY_BYTES:
            return PlainTextResponse(f"a body of more than {MAX_BODY_BYTES} bytes\n", status_code=413)
        if self._config.is_local:
            # a name of somebody else's that resolves to this machine (DNS rebinding)
            if _host_name(headers.get("host", "")) not in LOCAL_HOSTS:
                return PlainTextResponse("unknown host name; open the page by 127.0.0.1\n", status_code=421)
            return None
        if path in OPEN_PATHS or self._may_read(headers.get("authorization", "")):
            return None
        asks = {"www-authenticate": 'Basic realm="smollm2 checkpoint service, password: the token"'}
        return PlainTextResponse("the token is missing or wrong\n", status_code=401, headers=asks)

    def _may_read(self, authorization: str) -> bool:
        assert self._token is not None
        given = bearer(authorization)
        if given is None:
            given = _basic_password(authorization)
        return given is not None and self._token.matches(given)


class _LimitedBody:
    """A body without a length that goes on and on is cut off as well."""

    def __init__(self, receive: Receive) -> None:
        self._receive, self._bytes = receive, 0

    async def receive(self) -> Message:
        message = await self._receive()
        self._bytes += len(message.get("body", b""))
        if self._bytes > MAX_BODY_BYTES:
            raise HTTPException(413, f"a body of more than {MAX_BODY_BYTES} bytes")
        return message


def _with_headers(send: Send) -> Send:
    async def wrapped(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), *_HEADERS.items()]
        await send(message)

    return wrapped


def _host_name(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] or host


def _basic_password(authorization: str) -> str | None:
    scheme, _, encoded = authorization.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        return base64.b64decode(encoded, validate=True).decode().partition(":")[2]
    except (binascii.Error, UnicodeDecodeError):
        return None

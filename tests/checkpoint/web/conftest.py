"""A service's page on a real socket, with the runs of the tests behind it."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from checkpoint.service import Service
from checkpoint.web.server import PageServer

TOKEN = "0123456789abcdef0123456789abcdef"


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    text: str

    def json(self) -> Any:
        return json.loads(self.text)


@dataclass(frozen=True)
class Page:
    """`page.get("/")`, `page.post("/api/actions", {…}, token=TOKEN)`: paths go to the server as they stand."""

    service: Service
    url: str

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        address = urlsplit(self.url)
        connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=60)
        try:
            connection.putrequest(method, path, skip_host="Host" in headers, skip_accept_encoding=True)
            for name, value in headers.items():
                connection.putheader(name.replace("_", "-"), value)
            if body is not None and "Transfer_Encoding" not in headers and "Content_Length" not in headers:
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            answer = connection.getresponse()
            told = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, told, answer.read().decode())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, **headers)

    def act(self, body: object, *, token: str | None = None) -> Answer:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        authorization = {} if token is None else {"Authorization": f"Bearer {token}"}
        return self.ask("POST", "/api/actions", content, Content_Type="application/json", **authorization)


@pytest.fixture
def open_page(
    make_service: Callable[..., Service], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Page]]:
    """`open_page(host="0.0.0.0", token=None)`: looks at `tmp_path/runs` once and serves it until the test ends."""
    opened: list[PageServer] = []

    def start(*, token: str | None = TOKEN, host: str = "127.0.0.1", **settings: Any) -> Page:
        if token is None:
            monkeypatch.delenv("SMOLLM2_SERVICE_TOKEN", raising=False)
        else:
            monkeypatch.setenv("SMOLLM2_SERVICE_TOKEN", token)
        dead = "http://127.0.0.1:9"  # nothing listens there: no test here needs MLflow
        service = make_service(
            tmp_path / "runs", **{"tracking_uri": dead, "http": {"host": host, "port": 0}, **settings}
        )
        service.run_until_done()
        server = PageServer(service)
        server.__enter__()
        opened.append(server)
        return Page(service, server.url.replace("0.0.0.0", "127.0.0.1"))

    yield start
    for server in opened:
        server.__exit__()

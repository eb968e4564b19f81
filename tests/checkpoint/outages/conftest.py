"""A real `mlflow server`, and a proxy in front of it that fails on purpose."""

from __future__ import annotations

import base64
import contextlib
import http.client
import shutil
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest


class Proxy:
    """Passes requests on, but for those of which `fault(method, path)` says another thing: "error" answers 500 and asks
    nobody, "lose" passes the request on and hangs up instead of answering, "slow" answers after `delay_s`.
    """

    def __init__(
        self, upstream_port: int, *, credentials: str | None = None, tls: ssl.SSLContext | None = None
    ) -> None:
        self.fault: Callable[[str, str], str | None] = lambda method, path: None
        self.delay_s = 3.0
        self.seen: Counter[str] = Counter()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *arguments: object) -> None: ...

            def _pass_on(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                proxy.seen[self.path.rpartition("/")[2]] += 1
                expected = credentials and "Basic " + base64.b64encode(credentials.encode()).decode()
                if expected and self.headers.get("Authorization") != expected:
                    self._answer(401, b"who are you?")
                    return
                fault = proxy.fault(self.command, self.path)
                if fault == "error":
                    self._answer(500, b"it broke")
                    return
                upstream = http.client.HTTPConnection("127.0.0.1", upstream_port, timeout=60)
                headers = {key: value for key, value in self.headers.items() if key.lower() != "host"}
                upstream.request(self.command, self.path, body, headers)
                answer = upstream.getresponse()
                content = answer.read()
                if fault == "slow":
                    time.sleep(proxy.delay_s)
                if fault == "lose":
                    self.close_connection = True
                    return
                self._answer(answer.status, content)

            def _answer(self, status: int, content: bytes) -> None:
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # who asked has waited long enough
                    self.send_response(status)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _pass_on  # noqa: N815

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.uri = f"{'https' if tls else 'http'}://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def own_server(make_mlflow_server: Callable[[Path], Any], empty_database: Path, tmp_path: Path) -> Any:
    """One that is not started yet, and that the test may stop."""
    shutil.copy(empty_database, tmp_path / "server.db")
    return make_mlflow_server(tmp_path)


@pytest.fixture(scope="session")
def server(
    make_mlflow_server: Callable[[Path], Any], empty_database: Path, tmp_path_factory: pytest.TempPathFactory
) -> Any:
    """One for all tests, each of which has a run key of its own: a start takes seconds."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(empty_database, folder / "server.db")
    server = make_mlflow_server(folder)
    server.start()
    return server


@pytest.fixture
def make_proxy(server: Any) -> Iterator[Callable[..., Proxy]]:
    """`make_proxy(credentials="user:password", tls=context)` in front of the server."""
    proxies: list[Proxy] = []

    def make(**settings: Any) -> Proxy:
        proxies.append(Proxy(server.port, **settings))
        return proxies[-1]

    yield make
    for proxy in proxies:
        proxy.close()


@pytest.fixture
def proxy(make_proxy: Callable[..., Proxy]) -> Proxy:
    return make_proxy()

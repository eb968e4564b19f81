"""The page's HTTP server, in a thread of the service's process. A context manager."""

from __future__ import annotations

import os
import socket
import threading

import uvicorn

from checkpoint.config import HttpConfig
from checkpoint.manifest import CheckpointError
from checkpoint.service import Service
from checkpoint.web.access import read_token
from checkpoint.web.app import make_app

_STOP_TIMEOUT_S = 5.0
_MAX_CONNECTIONS = 64


class PageServer:
    """Serves while the block runs. Raises CheckpointError if the address is taken or a token is missing."""

    def __init__(self, service: Service) -> None:
        config = service.config.http
        token = read_token(config, os.environ)
        self._socket = _listen(config)
        host, port = self._socket.getsockname()[:2]
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        self._server = uvicorn.Server(
            uvicorn.Config(
                make_app(service, token=token),
                # what is asked for is nobody's business, and could hold a token
                access_log=False,
                log_level="warning",
                log_config=None,
                lifespan="off",
                ws="none",
                server_header=False,
                limit_concurrency=_MAX_CONNECTIONS,
                timeout_graceful_shutdown=1,
            )
        )
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True)

    def __enter__(self) -> PageServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(_STOP_TIMEOUT_S)
        self._socket.close()


def _listen(config: HttpConfig) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_MAX_CONNECTIONS)
    except OSError as error:
        reason = error.strerror or str(error)
        raise CheckpointError(
            f"the page cannot be served on {config.host}:{config.port}: {reason}; give another http.port, or 0 for any"
        ) from None
    return listener

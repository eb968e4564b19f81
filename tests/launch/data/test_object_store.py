"""What a store's failure is taken for, and what ends a copy early; a stand-in for fsspec, and a real HTTP server."""

from __future__ import annotations

import io
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest

from launch.data import object_store
from launch.data.object_store import StoreUnreachableError, copy_object, read_object
from pipeline.shards.format import DatasetError

URL = "store://data/data-00000-000.arrow"


class Store:
    """fsspec's side: every file has the same content, unless there is an error to raise."""

    def __init__(self, error: Exception | None = None) -> None:
        self.asked, self._error = 0, error

    def open(self, address: str, mode: str, **settings: object) -> io.BytesIO:
        self.asked += 1
        if self._error is not None:
            raise self._error
        return io.BytesIO(b"content")


def put(store: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(fsspec.core, "url_to_fs", lambda url: (store, url))
    return store


@pytest.mark.parametrize(
    ("failure", "raised"),
    [
        (FileNotFoundError("gone"), DatasetError),
        (PermissionError("no"), DatasetError),
        (ConnectionResetError("Connection reset by peer"), StoreUnreachableError),
        (TimeoutError(), StoreUnreachableError),
    ],
)
def test_what_lasts_is_the_users_and_anything_else_asked_again(
    monkeypatch: pytest.MonkeyPatch, failure: Exception, raised: type[Exception]
) -> None:
    monkeypatch.setattr(object_store, "FIRST_WAIT_S", 0.001)
    store = put(Store(failure), monkeypatch)
    with pytest.raises(raised, match=rf"^{URL} cannot be read \({type(failure).__name__}: [^\n]*$"):
        copy_object(URL, io.BytesIO(), patience_s=0.5, closed=threading.Event())
    assert (store.asked > 1) == (raised is StoreUnreachableError)


def test_a_store_that_fails_is_told_once_while_it_is_asked_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(object_store, "FIRST_WAIT_S", 0.001)
    put(Store(TimeoutError("slow")), monkeypatch)
    with pytest.raises(StoreUnreachableError):
        copy_object(URL, io.BytesIO(), patience_s=0.5, closed=threading.Event())
    [told] = caplog.messages
    assert told.startswith(f"{URL} cannot be read (TimeoutError: slow); check the address")
    assert told.endswith("; it is asked again for 0 s")  # rounded


def test_http_that_does_not_answer_is_not_taken_for_a_file_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fsspec says FileNotFoundError of both."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    copy = partial(copy_object, file=io.BytesIO(), patience_s=0.0, closed=threading.Event())
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        url = f"http://127.0.0.1:{server.server_port}/data-00000-000.arrow"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            with pytest.raises(DatasetError, match=r"its manifest names the file$"):
                copy(url)
            assert read_object(url) is None
        finally:
            server.shutdown()
            thread.join()
    with pytest.raises(StoreUnreachableError, match=r"cannot be read \(ClientConnectorError: .*; check the address"):
        copy(url)
    monkeypatch.setattr(object_store, "PATIENCE_S", 0.0)
    with pytest.raises(StoreUnreachableError, match=r"cannot be read \(ClientConnectorError: "):
        read_object(url)


def test_closing_ends_the_wait_before_the_next_question(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_store, "FIRST_WAIT_S", 300.0)
    store = put(Store(OSError("the line is cut")), monkeypatch)
    closed = threading.Event()
    threading.Timer(0.2, closed.set).start()
    began_s = time.monotonic()
    with pytest.raises(StoreUnreachableError):
        copy_object(URL, io.BytesIO(), patience_s=1000.0, closed=closed)
    assert time.monotonic() - began_s < 60
    assert store.asked == 1


def test_closing_ends_a_copy_after_the_part_that_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    put(Store(), monkeypatch)
    monkeypatch.setattr(object_store, "_READ_BYTES", 1)
    closed, written = threading.Event(), []

    class File(io.BytesIO):
        def write(self, content: bytes) -> int:  # type: ignore[override]
            written.append(content)
            closed.set()
            return len(content)

    with pytest.raises(StoreUnreachableError, match=rf"^{URL} is not copied: the reading has ended$"):
        copy_object(URL, File(), patience_s=1000.0, closed=closed)
    assert written == [b"c"]

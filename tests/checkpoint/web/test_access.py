"""Who may read and act, and what a hostile request gets: a status each, and no secret in any answer."""

from __future__ import annotations

import base64
import logging
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from checkpoint.config import HttpConfig
from checkpoint.manifest import CheckpointError
from checkpoint.web.access import Token, read_token

TOKEN = "0123456789abcdef0123456789abcdef"
OpenPage = Callable[..., Any]
PIN = {"action": "pin", "run": "small", "step": 4}


@pytest.fixture
def run(new_run: Callable[..., Path], pristine_runs: Path) -> Path:
    """A run of the name `small` with one checkpoint, of step 4."""
    made = new_run("small")
    shutil.copytree(
        pristine_runs / "run-float32" / "checkpoints" / "step-00000004", made / "checkpoints" / "step-00000004"
    )
    return made


@pytest.mark.parametrize("path", ["/", "/runs/small", "/api/status", "/metrics", "/api/openapi.json"])
def test_elsewhere_nothing_is_read_without_the_token(run: Path, open_page: OpenPage, path: str) -> None:
    page = open_page(host="0.0.0.0")
    basic = base64.b64encode(f"anyone:{TOKEN}".encode()).decode()
    assert page.get(path).status == 401
    assert page.get(path, Authorization="Bearer wrong").status == 401
    assert page.get(path, Authorization="Basic !!!").status == 401
    assert page.get(path, Authorization=f"Bearer {TOKEN}").status == 200
    assert page.get(path, Authorization=f"Basic {basic}").status == 200


def test_elsewhere_health_is_open_and_a_browser_is_asked_for_the_token(run: Path, open_page: OpenPage) -> None:
    page = open_page(host="0.0.0.0")
    assert (page.get("/healthz").status, page.get("/readyz").status) == (200, 200)
    assert page.get("/").headers["www-authenticate"].startswith("Basic ")


def test_on_this_machine_reading_is_open(run: Path, open_page: OpenPage) -> None:
    assert open_page(token=None).get("/").status == 200


def test_a_foreign_host_name_is_refused(run: Path, open_page: OpenPage) -> None:
    page = open_page()
    assert page.get("/", Host="evil.example").status == 421
    assert page.get("/", Host="localhost:1234").status == 200


@pytest.mark.parametrize("given", [None, "", "wrong", TOKEN[:-1], TOKEN + "0", "é"])
def test_acting_needs_the_token(run: Path, open_page: OpenPage, given: str | None) -> None:
    page = open_page()
    assert page.act(PIN, token=given).status == 401
    assert not (run / "pins").exists()
    assert page.act(PIN, token=TOKEN).status == 202
    assert [path.name for path in (run / "pins").iterdir()] == ["step-00000004"]


def test_basic_is_not_enough_to_act(run: Path, open_page: OpenPage) -> None:
    page = open_page(host="0.0.0.0")
    basic = base64.b64encode(f"anyone:{TOKEN}".encode()).decode()
    answer = page.ask("POST", "/api/actions", b"{}", Authorization=f"Basic {basic}")
    assert answer.status == 401
    form = page.ask("POST", "/runs/small/act", b"action=pin&step=4", Authorization=f"Basic {basic}")
    assert form.status == 401
    assert not (run / "pins").exists()


def test_actions_are_off_without_a_token(run: Path, open_page: OpenPage) -> None:
    answer = open_page(token=None).act(PIN, token=TOKEN)
    assert (answer.status, answer.json()["detail"]) == (403, "actions are off: the service was started without a token")


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"action": "pin"}', b'{"action": "rm", "run": "small", "step": 4}',
        b'{"action": "pin", "run": "small", "step": -1}', b'{"action": "pin", "run": "small", "step": "x"}',
        b'{"action": "pin", "run": "small", "step": 4, "path": "/etc"}', b'{"action":' * 300,
    ],
)  # fmt: skip
def test_a_malformed_body_is_422_and_is_not_sent_back(run: Path, open_page: OpenPage, body: bytes) -> None:
    page = open_page()
    answer = page.act(body, token=TOKEN)
    assert answer.status == 422
    assert "/etc" not in answer.text
    form = page.ask("POST", "/runs/small/act", b"token=" + TOKEN.encode() + b"&" + body)
    assert form.status == 422


def test_an_oversized_body_is_413_with_and_without_a_length(run: Path, open_page: OpenPage) -> None:
    page = open_page()
    assert page.act(b"x" * 5000, token=TOKEN).status == 413
    assert page.ask("POST", "/api/actions", b"", Content_Length="99999999999").status == 413
    assert page.ask("POST", "/api/actions", b"", Content_Length="many").status in (400, 413)
    chunks = b"400\r\n" + b"x" * 1024 + b"\r\n"
    body = chunks * 6 + b"0\r\n\r\n"
    answer = page.ask(
        "POST",
        "/api/actions",
        body,
        Transfer_Encoding="chunked",
        Content_Type="application/json",
        Authorization=f"Bearer {TOKEN}",
    )
    assert answer.status == 413
    assert page.get("/healthz").status == 200


@pytest.mark.parametrize(
    "name",
    [
        "../secret",
        "..%2Fsecret",
        "%2e%2e/secret",
        "....//secret",
        "%2Fetc%2Fpasswd",
        "..\\secret",
        "small%00",
        "x" * 300,
    ],
)
def test_no_path_leads_out_of_the_runs(run: Path, open_page: OpenPage, name: str) -> None:
    secret = run.parent.parent / "secret"
    shutil.copytree(run, secret)
    page = open_page()
    for path in (f"/runs/{name}", f"/api/runs/{name}", f"/{name}", f"/static/{name}"):
        assert page.get(path).status == 404, path
    answer = page.act({**PIN, "run": name}, token=TOKEN)
    assert answer.status in (404, 422)
    assert not (secret / "pins").exists()


def test_a_link_in_the_runs_folder_shows_a_run_and_nothing_else(run: Path, open_page: OpenPage) -> None:
    (run.parent / "link").symlink_to("/etc")
    page = open_page()
    assert [told["name"] for told in page.get("/api/status").json()["runs"]] == ["small"]
    assert page.get("/runs/link").status == 404


@pytest.mark.parametrize(
    "raw",
    [b"GET / HTTP/1.1\r\n\r\n", b"\x00\xff\r\n\r\n", b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nA: " + b"x" * 200_000],
)
def test_what_is_not_http_does_no_harm(run: Path, open_page: OpenPage, raw: bytes) -> None:
    page = open_page()
    address = urlsplit(page.url)
    with socket.create_connection((address.hostname, address.port), timeout=30) as connection:
        connection.sendall(raw)
        assert b" 200 " not in connection.recv(64)
    assert page.get("/healthz").status == 200


def test_every_answer_forbids_scripts_and_frames(run: Path, open_page: OpenPage) -> None:
    page = open_page()
    for path in ("/", "/nowhere", "/api/status"):
        headers = page.get(path).headers
        assert headers["content-security-policy"].startswith("default-src 'none'; ")
        assert headers["x-content-type-options"] == "nosniff"


def test_the_token_is_in_no_page_no_log_and_no_job(
    run: Path, open_page: OpenPage, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    page = open_page()
    texts = [page.get(path).text for path in ("/", "/runs/small", "/api/status", "/metrics", "/api/openapi.json")]
    texts += [page.act(PIN, token=TOKEN).text, page.act(PIN, token=TOKEN + "x").text]
    form = page.ask("POST", "/runs/small/act", f"action=pin&step=4&token={TOKEN}".encode())
    assert (form.status, form.headers["location"]) == (303, "/runs/small?said=step%204%20of%20small%20is%20pinned")
    captured = capfd.readouterr()
    texts += [str(form), caplog.text, captured.out, captured.err, repr(Token(TOKEN))]
    texts += [path.read_text() for path in run.parent.rglob("*.json*") if path.is_file()]
    assert not any(TOKEN in text for text in texts)


def test_a_job_does_not_inherit_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    from checkpoint.job_pool import _environment

    monkeypatch.setenv("SMOLLM2_SERVICE_TOKEN", TOKEN)
    inherited = _environment(without="SMOLLM2_SERVICE_TOKEN")
    assert TOKEN not in inherited.values()
    assert inherited["PATH"] == os.environ["PATH"]


def test_a_token_file_is_read_without_its_line_end(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    token = read_token(HttpConfig(host="0.0.0.0", token_file=tmp_path / "token"), {})
    assert token is not None
    assert token.matches(TOKEN)


@pytest.mark.parametrize(
    ("settings", "environment", "words"),
    [
        (
            {"host": "0.0.0.0"},
            {},
            "http.host=0.0.0.0 is reached from elsewhere, which needs a token: set SMOLLM2_SERVICE_",
        ),
        (
            {},
            {"SMOLLM2_SERVICE_TOKEN": "short"},
            "has 5 characters, wanted 16 or more; make one with `openssl rand -hex",
        ),
        (
            {"token_file": "/nowhere/token"},
            {},
            "http.token_file=/nowhere/token cannot be read: No such file or directory",
        ),
    ],
)
def test_a_token_that_is_missing_or_weak_is_told(
    settings: dict[str, Any], environment: dict[str, str], words: str
) -> None:
    with pytest.raises(CheckpointError) as caught:
        read_token(HttpConfig.model_validate(settings), environment)
    assert words in str(caught.value)
    assert "short" not in str(caught.value)


def test_a_port_that_is_taken_is_told(run: Path, open_page: OpenPage) -> None:
    page = open_page()
    port = urlsplit(page.url).port
    with pytest.raises(
        CheckpointError, match=r"cannot be served on 127.0.0.1:\d+: Address already in use; give another"
    ):
        open_page(http={"port": port})

"""A server that asks who is there, over TLS, by MLflow's own variables; and nothing of it in what others may read."""

from __future__ import annotations

import json
import logging
import shutil
import ssl
import subprocess
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests

from checkpoint.config import ServiceConfig
from checkpoint.mlflow_connection import TrackingError, public_uri, without_secrets
from checkpoint.service import Service
from checkpoint.tracking import Tracker

USER, PASSWORD = "trainer", "correct-horse-battery"

RunMaker = Callable[..., Path]
LogWriter = Callable[..., None]


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Key and certificate of 127.0.0.1 in one file."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl, to make a certificate")
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-keyout", folder / "key.pem", "-out", folder / "certificate.pem", "-subj", "/CN=127.0.0.1",
         "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True,
        capture_output=True,
    )  # fmt: skip
    return folder


@pytest.fixture
def guarded(make_proxy: Callable[..., Any], certificate: Path) -> Any:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate / "certificate.pem", certificate / "key.pem")
    return make_proxy(credentials=f"{USER}:{PASSWORD}", tls=tls)


def test_basic_auth_and_tls_by_mlflows_own_variables(
    server: Any, guarded: Any, certificate: Path, new_run: RunMaker, write_log: LogWriter, monkeypatch: Any
) -> None:
    run_key = uuid.uuid4().hex
    run = new_run("guarded", run_key=run_key)
    write_log(run, steps=3)
    with pytest.raises(TrackingError, match="did not answer or refused"):
        Tracker(guarded.uri).ship_events(run)
    monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(certificate / "certificate.pem"))
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", USER)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD + "-not")
    with pytest.raises(TrackingError, match="401") as refused:
        Tracker(guarded.uri).ship_events(run)
    assert PASSWORD not in str(refused.value)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    Tracker(guarded.uri).ship_events(run)
    assert [step for key, step, *_ in server.rows(run_key) if key == "train/loss"] == [1, 2, 3]


def test_password_in_the_uri_is_in_no_log_journal_status_or_command_line(
    make_proxy: Callable[..., Any],
    new_run: RunMaker,
    write_log: LogWriter,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """By the real pool, whose workers' command lines everybody on the machine may read."""
    proxy = make_proxy(credentials=f"{USER}:{PASSWORD}")
    run = new_run("secret", run_key=uuid.uuid4().hex)
    write_log(run, steps=3)
    commands: set[str] = set()
    with caplog.at_level(logging.DEBUG):
        for password, is_right in ((PASSWORD, True), ("wrong-" + PASSWORD, False)):
            uri = proxy.uri.replace("://", f"://{USER}:{password}@")
            service = Service(run.parent, ServiceConfig.model_validate({"tracking_uri": uri}))
            look_at = service._runner.poll

            def poll(look_at: Any = look_at) -> Any:
                commands.update(path.read_text() for path in worker_command_lines())
                return look_at()

            service._runner.poll = poll  # type: ignore[method-assign]
            status = service.run_until_done()
            assert [one.is_shipped for one in status.runs] == [is_right]
            assert PASSWORD not in status.model_dump_json()
            if is_right:
                journal = (run / "service" / "journal.json").read_text()
                assert json.loads(journal)["tracking_uri"] == proxy.uri
            else:
                assert "401" in status.problems[0]
            assert not any(PASSWORD in path.read_text(errors="replace") for path in run.rglob("*") if path.is_file())
    assert any("checkpoint.worker" in command for command in commands)
    assert not any(PASSWORD in command for command in commands)
    assert PASSWORD not in caplog.text


def test_password_in_the_uri_is_not_printed(
    make_proxy: Callable[..., Any], new_run: RunMaker, write_log: LogWriter, capfd: pytest.CaptureFixture[str]
) -> None:
    proxy = make_proxy(credentials=f"{USER}:{PASSWORD}")
    run = new_run("printed", run_key=uuid.uuid4().hex)
    write_log(run, steps=3)
    Tracker(proxy.uri.replace("://", f"://{USER}:{PASSWORD}@")).ship_events(run)
    assert PASSWORD not in "".join(capfd.readouterr())


def worker_command_lines() -> list[Path]:
    """Of this process's children."""
    import psutil

    return [Path(f"/proc/{child.pid}/cmdline") for child in psutil.Process().children(recursive=True)]


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://user:pa@ss:word@mlflow:5000/x", "http://mlflow:5000/x"),
        ("postgresql://user:secret@db/mlflow?sslmode=require", "postgresql://db/mlflow?sslmode=require"),
        ("postgresql://db/mlflow?user=me&password=secret&x=1", "postgresql://db/mlflow?user=me&password=…&x=1"),
        ("postgresql://mlflow:ab/cd+ef@db/mlflow", "postgresql://db/mlflow"),
        ("postgresql://mlflow:a?b#c@db/mlflow?user=a@b", "postgresql://db/mlflow?user=a@b"),
        ("postgresql://me@corp:ab/cd@db/mlflow", "postgresql://db/mlflow"),
        ("postgresql://me:ab/c@d/e@db/mlflow", "postgresql://db/mlflow"),
        ("https://token@mlflow:5000/x", "https://mlflow:5000/x"),
        ("sqlite:////runs/mlflow.db", "sqlite:////runs/mlflow.db"),
        ("sqlite:////runs/a@b/c:d@e/m.db", "sqlite:////runs/a@b/c:d@e/m.db"),
        ("http://mlflow/a@b", "http://mlflow/a@b"),
        ("https://mlflow:5000", "https://mlflow:5000"),
    ],
)
def test_uri_is_shown_without_its_credentials(uri: str, shown: str) -> None:
    assert public_uri(uri) == shown


def test_text_loses_what_is_secret_wherever_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "abcd1234")
    text = "connection to http://me:se%20cret@host refused for 'se cret' with Bearer abcd1234"
    assert (
        without_secrets(text, uri="http://me:se%20cret@host")
        == "connection to http://host refused for '…' with Bearer …"
    )


@pytest.mark.parametrize(
    "said", ["user me, password open/sesame@barrel", "no password open/sesame", "no host barrel@db"]
)
def test_text_loses_a_password_whose_slash_and_at_are_not_escaped(said: str) -> None:
    shown = without_secrets(said, uri="postgresql://me:open/sesame@barrel@db/mlflow")
    assert "sesame" not in shown
    assert "barrel" not in shown


class ForeignError(Exception):
    """Of an artefact store's own library, as boto3's are."""


@pytest.mark.parametrize(
    "error",
    [
        requests.HTTPError(f"413 Client Error for url: http://{USER}:{PASSWORD}@mlflow/artifacts. " + "<html>" * 100),
        ForeignError(f"upload to http://{USER}:{PASSWORD}@store failed"),
    ],
)
def test_what_an_artefact_store_says_is_one_line_without_secrets(
    tmp_path: Path, new_run: RunMaker, empty_database: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    tracker = Tracker(f"sqlite:///{shutil.copy(empty_database, tmp_path / 'mlflow.db')}")

    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(tracker.client, "log_artifact", refuse)
    page = tmp_path / "report.html"
    page.touch()
    run = new_run()
    with pytest.raises(TrackingError, match="did not answer or refused") as caught:
        tracker.ship_files(run, {"report.html": page}, tags={})
    assert PASSWORD not in str(caught.value)
    assert len(str(caught.value)) < 400
    with pytest.raises(FileNotFoundError):  # no fault of the store's
        tracker.ship_files(run, {"gone.html": tmp_path / "gone.html"}, tags={})

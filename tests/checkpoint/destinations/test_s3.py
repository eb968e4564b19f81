"""Publishing to a real S3-compatible server on 127.0.0.1: created and never replaced, checked by reading back."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from checkpoint.publication import PublicationError, UnreachableError
from checkpoint.publish import publish_export
from launch.cluster.launcher import free_port

AddExport = Callable[..., Path]
URL = "s3://models/smollm2"
KEY = "smollm2/small/step-00000004"


@pytest.fixture
def store(s3_client: Any) -> Any:
    """A boto3 client of a server that holds an empty bucket `models`."""
    s3_client.create_bucket(Bucket="models")
    return s3_client


@pytest.fixture
def run(new_run: Callable[..., Path], add_export: AddExport) -> Path:
    made = new_run("small")
    add_export(made, 4)
    return made


def stored(client: Any) -> dict[str, bytes]:
    listed = client.list_objects_v2(Bucket="models").get("Contents", [])
    return {one["Key"]: client.get_object(Bucket="models", Key=one["Key"])["Body"].read() for one in listed}


def test_what_arrives_is_what_was_proven_and_latest_names_it(store: Any, run: Path) -> None:
    done = publish_export(run, 4, URL)
    assert (done.location, done.sent, done.latest) == (f"s3://models/{KEY}", 4, 4)
    export = run / "exports" / "step-00000004"
    assert stored(store) == {
        **{f"{KEY}/{path.name}": path.read_bytes() for path in export.iterdir()},
        "smollm2/small/latest": b"step-00000004\n",
        "smollm2/small/run-key": b"f" * 32 + b"\n",
    }


def test_a_publication_that_was_cut_short_goes_on(store: Any, run: Path) -> None:
    publish_export(run, 4, URL)
    store.delete_object(Bucket="models", Key=f"{KEY}/proof.json")
    store.delete_object(Bucket="models", Key="smollm2/small/latest")
    done = publish_export(run, 4, URL)
    assert (done.sent, done.found, done.latest) == (1, 3, 4)


def test_an_object_in_its_place_is_never_replaced(store: Any, run: Path) -> None:
    store.put_object(Bucket="models", Key=f"{KEY}/config.json", Body=b"theirs")
    with pytest.raises(PublicationError, match=r"config.json is sha256:.*; remove it, or publish elsewhere"):
        publish_export(run, 4, URL)
    assert stored(store) == {f"{KEY}/config.json": b"theirs", "smollm2/small/run-key": b"f" * 32 + b"\n"}


def test_an_object_that_somebody_makes_meanwhile_is_not_replaced(store: Any, run: Path) -> None:
    from checkpoint.destinations.s3 import S3Destination

    destination = S3Destination(URL, run_name="small")
    assert destination.digest(4, "config.json") is None
    store.put_object(Bucket="models", Key=f"{KEY}/config.json", Body=b"theirs")
    with pytest.raises(PublicationError, match=r"config.json was made by somebody else meanwhile; publish again"):
        destination.create(4, {"config.json": run / "exports" / "step-00000004" / "config.json"})
    assert stored(store)[f"{KEY}/config.json"] == b"theirs"


def test_latest_never_moves_back_and_not_over_somebody_elses_move(
    store: Any, run: Path, add_export: AddExport, monkeypatch: pytest.MonkeyPatch
) -> None:
    from checkpoint.destinations.s3 import S3Destination

    add_export(run, 2)
    publish_export(run, 4, URL)
    assert publish_export(run, 2, URL).latest == 4
    destination = S3Destination(URL, run_name="small")
    stale = destination._etag("models/smollm2/small/latest")
    store.put_object(Bucket="models", Key="smollm2/small/latest", Body=b"step-00000005\n")
    monkeypatch.setattr(destination, "_etag", lambda key: stale)
    monkeypatch.setattr(destination, "_read", lambda key, etag: iter([b"step-00000004\n"]))
    with pytest.raises(PublicationError, match=r"latest was changed by somebody else meanwhile; publish again"):
        destination.move_latest(6, {})
    assert stored(store)["smollm2/small/latest"] == b"step-00000005\n"


def test_another_run_of_the_same_name_is_refused(store: Any, run: Path, other_run: Path) -> None:
    publish_export(run, 4, URL)
    before = stored(store)
    with pytest.raises(PublicationError, match=r"^s3://models/smollm2/small is of another run of this name \(run-key"):
        publish_export(other_run, 9, URL)
    assert stored(store) == before


def test_of_two_runs_that_claim_at_once_one_has_the_place(
    store: Any, run: Path, other_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from checkpoint.destinations.s3 import S3Destination

    store.put_object(Bucket="models", Key="smollm2/small/run-key", Body=b"f" * 32)
    monkeypatch.setattr(S3Destination, "_etag", lambda self, key: None)  # as it was a moment before
    with pytest.raises(PublicationError, match=r"run-key was made by somebody else meanwhile; publish again"):
        publish_export(other_run, 9, URL)
    assert stored(store) == {"smollm2/small/run-key": b"f" * 32}


def test_a_latest_that_names_nothing_is_one_line(store: Any, run: Path) -> None:
    store.put_object(Bucket="models", Key="smollm2/small/latest", Body=b"step-\xff")
    with pytest.raises(PublicationError, match=r"^s3://models/smollm2/small/latest is 'step-.*', wanted step-NUMBER"):
        publish_export(run, 4, URL)


def test_a_large_file_goes_in_parts_and_is_read_back(store: Any, run: Path, add_export: AddExport) -> None:
    weights = bytes(range(256)) * 150_000  # 38 MB: more than two parts
    add_export(run, 5, weights=weights)
    publish_export(run, 5, URL)
    told = store.head_object(Bucket="models", Key="smollm2/small/step-00000005/model.safetensors")
    assert told["ETag"].endswith('-3"')
    body = store.get_object(Bucket="models", Key="smollm2/small/step-00000005/model.safetensors")["Body"].read()
    assert hashlib.sha256(body).digest() == hashlib.sha256(weights).digest()


def test_a_server_that_is_away_is_one_line(run: Path, store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(UnreachableError, match=r"^s3://models/smollm2/small/run-key: \w+: [^\n]+$"):
        publish_export(run, 4, URL)


def test_a_bucket_that_does_not_exist_is_one_line(store: Any, run: Path) -> None:
    with pytest.raises(UnreachableError, match=r"^s3://nowhere/small/run-key: [^\n]*bucket"):
        publish_export(run, 4, "s3://nowhere")

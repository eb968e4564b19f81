"""Publishing to a stand-in of the Hugging Face hub that speaks its protocol (`hub_server.py`), by the real client."""

from __future__ import annotations

import importlib.util
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

AddExport = Callable[..., Path]
Publish = Callable[..., subprocess.CompletedProcess[str]]
REPOSITORY = "owner/small"
SPEC = importlib.util.spec_from_file_location("hub_server", Path(__file__).with_name("hub_server.py"))
assert SPEC is not None
assert SPEC.loader is not None
hub_server: ModuleType = importlib.util.module_from_spec(SPEC)


@pytest.fixture(scope="module", autouse=True)
def load_server() -> None:
    import sys

    sys.modules["hub_server"] = hub_server  # dataclasses look their module up
    assert SPEC is not None
    assert SPEC.loader is not None
    SPEC.loader.exec_module(hub_server)


@pytest.fixture
def hub() -> Iterator[Any]:
    made = hub_server.Hub()
    server = hub_server.serve(made)
    made.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield made
    server.shutdown()
    server.server_close()


@pytest.fixture
def environment(hub: Any, tmp_path: Path) -> dict[str, str]:
    # xet's protocol has no stand-in; git-lfs's is what the client falls back to
    return {
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": hub_server.TOKEN,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_OFFLINE": "0",
    }


@pytest.fixture
def run(new_run: Callable[..., Path], add_export: AddExport) -> Path:
    made = new_run("small")
    add_export(made, 4)
    return made


def exported(run: Path, step: int) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (run / "exports" / f"step-{step:08d}").iterdir()}


def test_a_branch_an_export_and_main_for_the_newest(
    hub: Any, run: Path, publish: Publish, environment: dict[str, str], add_export: AddExport
) -> None:
    first = publish(run, 4, f"hf://{REPOSITORY}", **environment)
    assert first.stdout == f"published hf://{REPOSITORY}@step-00000004: 4 files sent, 0 were there; latest is step 4\n"
    assert hub.private == {REPOSITORY: True}
    attributes = {".gitattributes": b"*.safetensors filter=lfs\n"}
    owner = {"run-key": b"f" * 32 + b"\n"}
    assert hub.files(REPOSITORY, "step-00000004") == {**exported(run, 4), **attributes}
    assert hub.files(REPOSITORY) == {**exported(run, 4), **attributes, **owner}
    assert len(hub.uploads) == 1  # once for both branches
    add_export(run, 2, weights=b"older")
    older = publish(run, 2, f"hf://{REPOSITORY}", **environment)
    assert "latest is step 4" in older.stdout
    assert hub.files(REPOSITORY, "step-00000002") == {**exported(run, 2), **attributes}
    assert hub.files(REPOSITORY) == {**exported(run, 4), **attributes, **owner}


def test_a_publication_that_was_cut_short_goes_on_without_sending_again(
    hub: Any, run: Path, publish: Publish, environment: dict[str, str]
) -> None:
    def cut(method: str, path: str) -> None:
        if path.endswith("/commit/main") and hub.uploads:  # after the claim
            raise hub_server.RefusedError(500)

    hub.before = cut
    failed = publish(run, 4, f"hf://{REPOSITORY}", **environment)
    assert (failed.returncode, len(failed.stderr.splitlines())) == (2, 1)
    assert f"smollm2 checkpoint: hf://{REPOSITORY}: " in failed.stderr
    assert "model.safetensors" not in hub.files(REPOSITORY)
    hub.before = lambda method, path: None
    done = publish(run, 4, f"hf://{REPOSITORY}", **environment)
    assert "0 files sent, 4 were there; latest is step 4" in done.stdout
    assert len(hub.uploads) == 1
    assert hub.files(REPOSITORY)["model.safetensors"] == b"weights"


def test_a_branch_that_somebody_moves_meanwhile_is_not_overwritten(
    hub: Any, run: Path, publish: Publish, environment: dict[str, str]
) -> None:
    def interfere(method: str, path: str) -> None:
        if path.endswith("/commit/step-00000004"):
            hub.before = lambda method, path: None
            hub.commit(REPOSITORY, "step-00000004", "theirs", {"config.json": b"theirs"})

    hub.before = interfere
    refused = publish(run, 4, f"hf://{REPOSITORY}", **environment)
    assert refused.stderr == (
        f"smollm2 checkpoint: hf://{REPOSITORY} was changed by somebody else meanwhile; publish again\n"
    )
    again = publish(run, 4, f"hf://{REPOSITORY}", **environment)
    assert "config.json is sha256:" in again.stderr
    assert "remove it, or publish elsewhere" in again.stderr
    assert hub.files(REPOSITORY, "step-00000004") == {"config.json": b"theirs"}


def test_another_run_is_refused_in_one_line(
    hub: Any, run: Path, other_run: Path, publish: Publish, environment: dict[str, str]
) -> None:
    publish(run, 4, f"hf://{REPOSITORY}", **environment)
    refused = publish(other_run, 9, f"hf://{REPOSITORY}", **environment)
    assert refused.returncode == 2
    assert refused.stderr.startswith(f"smollm2 checkpoint: hf://{REPOSITORY} is of another run")
    assert refused.stderr.count("\n") == 1
    assert list(hub.branches[REPOSITORY]) == ["main", "step-00000004"]
    assert hub.files(REPOSITORY)["model.safetensors"] == b"weights"


def test_a_wrong_token_is_one_line_without_the_token(
    hub: Any, run: Path, publish: Publish, environment: dict[str, str]
) -> None:
    refused = publish(run, 4, f"hf://{REPOSITORY}", **{**environment, "HF_TOKEN": "hf_wrongwrong"})
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
    assert "401" in refused.stderr
    assert "hf_wrongwrong" not in refused.stderr


def test_a_url_without_an_owner_is_refused(run: Path, publish: Publish) -> None:
    refused = publish(run, 4, "hf://small")
    assert refused.stderr == "smollm2 checkpoint: 'hf://small' names no repository; wanted hf://OWNER/NAME\n"

"""Small disks, an object store, an MLflow server, ranks, and a tiny run's config, for the tests of every room."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import settings

from launch.cluster.launcher import free_port

# no limit of milliseconds for an example: where other work runs too, any may take longer
settings.register_profile("busy machine", deadline=None)
settings.load_profile("busy machine")

ROOT = Path(__file__).resolve().parents[1]
RANKS_END_S = 240.0  # before pytest's own limit, which would not show what they said
OTHERS_END_S = 20.0  # those that wait for one that has failed

SERVER = """
import sys, time
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


TINY = {
    "name": "tiny",
    "seed": 7,
    "model": {
        "vocab_size": 256,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.15,
    },
    "batch_tokens": 1024,
    "micro_batch_size": 4,
    "precision": "float32",
    "optimizer": {"learning_rate": 1e-2},
}


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., str]:
    """`tiny_config(run, {"chain": dataset}, steps=12, …)`: a config file for a run of two layers, which trains in
    seconds on sequences of 64 tokens."""

    def text(run: Path, sources: Mapping[str, Path], **settings: Any) -> str:
        named = [{"name": name, "path": str(path)} for name, path in sources.items()]
        data = {"sources": named, "sequence_length": 64}
        return str(yaml.safe_dump({"run_dir": str(run), "data": data, **TINY, **settings}, sort_keys=False))

    return text


@pytest.fixture(scope="session")
def run_ranks(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[subprocess.CompletedProcess[str]]]:
    """`run_ranks(2, script, argument, …, NAME=value, …)`: a script (or `-m`, module) as so many ranks on CPUs, and how
    each ended; `{rank}` in an argument is its number. Without a launcher, which takes longer to start than they do.

    A rank that ends in another way than with 0 fails the test, with the last words of all, unless `check=False`.
    """

    def run(
        ranks: int, *arguments: Any, check: bool = True, **variables: Any
    ) -> list[subprocess.CompletedProcess[str]]:
        folder, port = tmp_path_factory.mktemp("ranks"), free_port()
        common = {
            "WORLD_SIZE": ranks, "LOCAL_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
            "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": 1, "PYTHONPATH": ROOT,
            # ninja stands beside the interpreter
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }  # fmt: skip
        with ExitStack() as stack:
            stack.callback(_remove_shared_memory, port)
            processes = []
            for rank in range(ranks):
                environment = common | {"RANK": rank, "LOCAL_RANK": rank} | variables
                process = subprocess.Popen(
                    [sys.executable, *(str(argument).replace("{rank}", str(rank)) for argument in arguments)],
                    cwd=ROOT,
                    env=os.environ | {name: str(value) for name, value in environment.items()},
                    stdout=stack.enter_context((folder / f"{rank}.out").open("w")),
                    stderr=stack.enter_context((folder / f"{rank}.err").open("w")),
                )
                stack.callback(process.wait)
                stack.callback(process.kill)
                processes.append(process)
            _wait_for(processes)
        ended = [
            subprocess.CompletedProcess(
                process.args, process.returncode, *((folder / f"{rank}.{kind}").read_text() for kind in ("out", "err"))
            )
            for rank, process in enumerate(processes)
        ]
        codes = [rank.returncode for rank in ended]
        assert not check or not any(codes), "\n".join([f"exit codes {codes}", *(rank.stderr[-2000:] for rank in ended)])
        return ended

    return run


def _wait_for(processes: list[subprocess.Popen[bytes]]) -> None:
    """Until all have ended, or one has failed and the others have had their time to notice, or it takes too long."""
    deadline_s = time.monotonic() + RANKS_END_S
    while None in (codes := [process.poll() for process in processes]) and time.monotonic() < deadline_s:
        if any(codes):
            deadline_s = min(deadline_s, time.monotonic() + OTHERS_END_S)
        time.sleep(0.02)


def _remove_shared_memory(port: int) -> None:
    """DeepSpeed's buffers of ranks that ended before they had taken the names off."""
    for path in Path("/dev/shm").glob(f"deepspeed_*_{port}_*"):
        path.unlink()


@pytest.fixture
def mount_tmpfs(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """`mount_tmpfs("size=1m")`, and again with `remount` among the options; skips where that is not allowed."""
    folder = tmp_path / "mount"
    folder.mkdir()
    mounted = False

    def mount(options: str) -> Path:
        nonlocal mounted
        if os.geteuid() != 0:
            pytest.skip("mounting a tmpfs needs root")
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")
        mounted = True
        return folder

    yield mount
    if mounted:
        subprocess.run(["umount", folder], check=True)


@pytest.fixture(scope="session")
def endpoint() -> Iterator[str]:
    pytest.importorskip("moto", reason="needs moto[server]")
    pytest.importorskip("flask", reason="needs moto[server]")
    pytest.importorskip("s3fs", reason="needs the extra s3")
    command = [sys.executable, "-c", SERVER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as server:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        yield f"http://127.0.0.1:{port}"
        server.terminate()


@pytest.fixture
def s3_client(endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A boto3 client of the server, which holds nothing; the environment names the server and holds credentials."""
    for name, value in {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
    }.items():
        monkeypatch.setenv(name, value)
    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/moto-api/reset", method="POST")).close()
    import boto3

    return boto3.client("s3")


@pytest.fixture
def bucket(s3_client: Any) -> Iterator[Any]:
    """`bucket.put(key, content)` in an empty bucket `data` of `s3_client`'s server."""
    import fsspec

    s3_client.create_bucket(Bucket="data")

    class Bucket:
        def put(self, key: str, content: bytes) -> None:
            s3_client.put_object(Bucket="data", Key=key, Body=content)

    fsspec.get_filesystem_class("s3").clear_instance_cache()
    yield Bucket()
    fsspec.get_filesystem_class("s3").clear_instance_cache()


class MlflowServer:
    """`mlflow server` over `FOLDER/server.db`, on a port of its own."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.uri, self.database = f"http://127.0.0.1:{self.port}", folder / "server.db"
        self._command = [
            sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1",
            "--backend-store-uri", f"sqlite:///{self.database}",
            "--artifacts-destination", str(folder / "files"),
        ]  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        self._process = subprocess.Popen(
            self._command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        for _ in range(480):
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=5).close()
                return
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.25)
        raise AssertionError("mlflow server did not start")

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, number)
            self._process.wait()
            self._process = None

    def rows(self, run_key: str) -> list[tuple[str, int, int, float]]:
        """(key, step, timestamp, value) of every row of the active runs of a key, in order, however often each."""
        return self._ask(
            "select m.key, m.step, m.timestamp, m.value from metrics m join tags t on t.run_uuid = m.run_uuid "
            "join runs r on r.run_uuid = m.run_uuid where t.key = ? and t.value = ? and r.lifecycle_stage = 'active' "
            "order by m.key, m.step, m.timestamp",
            ("smollm2.run_key", run_key),
        )

    def runs(self, run_key: str) -> list[tuple[str, str]]:
        """(lifecycle stage, status) of all runs of a key."""
        return self._ask(
            "select r.lifecycle_stage, r.status from runs r join tags t on t.run_uuid = r.run_uuid "
            "where t.key = ? and t.value = ? order by r.lifecycle_stage",
            ("smollm2.run_key", run_key),
        )

    def _ask(self, query: str, values: tuple[str, ...]) -> list[Any]:
        with sqlite3.connect(self.database, timeout=30) as store:
            return store.execute(query, values).fetchall()


@pytest.fixture(scope="session")
def make_mlflow_server() -> Iterator[Callable[[Path], MlflowServer]]:
    """`make_mlflow_server(folder)`: one that is not started yet; all are stopped in the end."""
    servers: list[MlflowServer] = []

    def make(folder: Path) -> MlflowServer:
        servers.append(MlflowServer(folder))
        return servers[-1]

    yield make
    for server in servers:
        server.stop()

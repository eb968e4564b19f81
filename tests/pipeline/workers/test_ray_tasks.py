"""Runs on Ray: real nodes on this machine, of which one is killed, and drivers that are killed; and many lost nodes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from configs.load import dump
from pipeline.config import PipelineConfig
from pipeline.executors import ExecutorSettings, WorkerError, execute
from pipeline.interruption import signals_interrupt
from pipeline.run import run
from pipeline.workers import ray_tasks
from pipeline.workers.quarantine import QuarantineError
from pipeline.workers.task import Finished, Started

ROOT = Path(__file__).resolve().parents[3]
MakeConfig = Callable[..., PipelineConfig]


def start(config_file: Path, *overrides: str, address: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline", "run", str(config_file), "executor=ray", *overrides],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "RAY_ADDRESS": address},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def digests(dataset: Path) -> dict[str, str]:
    return {
        file.relative_to(dataset).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(dataset.rglob("*"))
        if file.is_file() and file.name not in ("report.json", "report.html", "status.json", ".lock")
    }


def wait_for_units(dataset: Path, count: int, process: subprocess.Popen[str]) -> None:
    while len(list(dataset.glob(".work/units/*.json"))) < count:
        assert process.poll() is None, f"it ended before it could be killed: {process.communicate()}"
        time.sleep(0.005)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Two nodes of one CPU each."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    folder = tempfile.mkdtemp(prefix="ray")  # not pytest's: the names of sockets may be 107 characters long
    monkeypatch.setenv("RAY_TMPDIR", folder)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    node = {"num_cpus": 1, "object_store_memory": 100 << 20}
    cluster = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
    cluster.add_node(**node)
    yield cluster
    cluster.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


def test_a_node_and_a_driver_killed_in_the_middle_change_no_byte(
    cluster: Any,
    tmp_path: Path,
    make_config: MakeConfig,
    make_texts: Callable[..., list[str]],
    make_jsonl: Callable[[Path, Sequence[str]], Path],
) -> None:
    make_jsonl(tmp_path / "corpus" / "a.jsonl", make_texts(1000, seed=5, words=400))
    config = make_config(unit_size_bytes=25_000, shard_size_bytes=20_000, workers=None)
    file = tmp_path / "config.yaml"
    file.write_text(dump(config))
    driver = start(file, address=cluster.address)
    wait_for_units(config.output_dir, 2, driver)
    driver.terminate()  # Ray would exit with code 15, and say nothing
    assert driver.communicate(timeout=60)[1].splitlines()[-1].endswith("interrupted; run the same command to go on")
    assert driver.returncode == 143
    assert json.loads((config.output_dir / "status.json").read_bytes())["error"] == "stopped by SIGTERM"
    driver = start(file, address=cluster.address)
    wait_for_units(config.output_dir, 4, driver)
    driver.kill()
    driver.communicate()
    driver = start(file, address=cluster.address)
    wait_for_units(config.output_dir, 8, driver)
    assert driver.poll() is None
    (other,) = cluster.worker_nodes
    cluster.remove_node(other, allow_graceful=False)
    stdout, stderr = driver.communicate(timeout=120)
    assert driver.returncode == 0, stderr
    assert "going on: " in stderr
    assert stdout.startswith("test: 1,000 documents, ")
    one = config.model_copy(update={"output_dir": tmp_path / "one", "executor": "serial"})
    run(one)
    assert digests(config.output_dir) == digests(one.output_dir)


def test_an_address_where_nobody_answers_is_one_line(corpus: Path, tmp_path: Path, make_config: MakeConfig) -> None:
    pytest.importorskip("ray")
    (tmp_path / "config.yaml").write_text(dump(make_config()))
    driver = start(tmp_path / "config.yaml", address="127.0.0.1:9")
    stdout, stderr = driver.communicate(timeout=120)
    assert driver.returncode == 2, stdout
    assert "smollm2 pipeline: no Ray cluster answers at RAY_ADDRESS=127.0.0.1:9 (" in stderr
    assert "Traceback" not in stderr


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    expected = r"^executor=ray needs Ray: pip install 'smollm2-pretraining\[ray\]', or executor=local$"
    with pytest.raises(WorkerError, match=expected):
        list(execute(ExecutorSettings("ray"), int, [1]))


class Cluster:
    """What `run_on_ray` asks of Ray. An item ends as `ends(item, attempt)` says: in an error, or, None, well."""

    def __init__(self, exceptions: Any, *, cpus: int, ends: Callable[[int, int], Exception | None]) -> None:
        self.exceptions = exceptions
        self.attempts: Counter[int] = Counter()
        self._cpus = cpus
        self._ends = ends

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": self._cpus}

    def put(self, content: bytes) -> bytes:
        return content

    def remote(self, **options: object) -> Callable[..., Any]:
        return lambda do: SimpleNamespace(remote=self._begin)

    def _begin(self, content: bytes, folder: str, call: str, item: int, limit: None) -> Iterator[Any]:
        self.attempts[item] += 1
        end = self._ends(item, self.attempts[item]) or Finished(item)
        return iter([Started(item, worker="pid 7 on 10.0.0.3"), end])

    def wait(self, streams: list[Any], **options: object) -> tuple[list[Any], list[Any]]:
        return streams, []

    def get(self, message: Any) -> Any:
        if isinstance(message, Exception):
            raise message
        return message

    def cancel(self, stream: object, *, force: bool) -> None:
        pass


def do_all(cluster: Cluster, items: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The results, one by one."""
    monkeypatch.setattr(ray_tasks, "_ray", lambda workers: nullcontext(cluster))
    for message in ray_tasks.run_on_ray(int, range(items)):
        if isinstance(message, Finished):
            yield message.result


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("NodeDiedError", ["it died"]), ("LocalRayletDiedError", []), ("ObjectLostError", ["ff", None, ""])],
)
def test_all_items_of_a_node_that_is_lost_are_done_by_others(
    monkeypatch: pytest.MonkeyPatch, name: str, arguments: list[Any]
) -> None:
    exceptions = pytest.importorskip("ray").exceptions
    lost = getattr(exceptions, name)(*arguments)
    cluster = Cluster(exceptions, cpus=64, ends=lambda item, attempt: lost if attempt == 1 and item < 64 else None)
    assert sorted(do_all(cluster, 100, monkeypatch)) == list(range(100))


def test_a_cluster_that_loses_every_node_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    exceptions = pytest.importorskip("ray").exceptions
    lost = exceptions.NodeDiedError("it died")
    cluster = Cluster(exceptions, cpus=10, ends=lambda item, attempt: lost)
    with pytest.raises(WorkerError, match=r"^workers die whatever they do: a worker \(pid 7 on 10.0.0.3\) was lost"):
        list(do_all(cluster, 1000, monkeypatch))
    # each of ten nine times over, and nine more that are no longer excused, of ten that had begun
    assert cluster.attempts.total() == 100


def test_an_item_that_takes_its_nodes_down_is_set_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    exceptions = pytest.importorskip("ray").exceptions
    lost = exceptions.NodeDiedError("it died")
    cluster = Cluster(exceptions, cpus=4, ends=lambda item, attempt: lost if item == 2 else None)
    results = do_all(cluster, 9, monkeypatch)
    assert sorted(next(results) for _ in range(8)) == [0, 1, 3, 4, 5, 6, 7, 8]
    with pytest.raises(QuarantineError, match=r"^units that killed 3 workers each and are not done: 2 \(was lost"):
        next(results)
    assert cluster.attempts[2] == 5  # excused twice


@pytest.mark.parametrize(("sent", "expected"), [(signal.SIGTERM, (signal.SIGTERM,)), (None, ())])
def test_an_interrupt_that_ray_raises_anew_tells_which_signal_it_was(
    monkeypatch: pytest.MonkeyPatch, sent: signal.Signals | None, expected: tuple[int, ...]
) -> None:
    def end(item: int, attempt: int) -> Exception | None:
        with suppress(KeyboardInterrupt):
            if sent is not None:
                signal.raise_signal(sent)
        raise KeyboardInterrupt  # as its core does in the middle of a call

    cluster = Cluster(None, cpus=1, ends=end)
    with signals_interrupt(), pytest.raises(KeyboardInterrupt) as caught:
        list(do_all(cluster, 1, monkeypatch))
    assert caught.value.args == expected


def test_a_worker_that_dies_alone_is_not_excused(monkeypatch: pytest.MonkeyPatch) -> None:
    exceptions = pytest.importorskip("ray").exceptions
    died = exceptions.WorkerCrashedError()
    cluster = Cluster(exceptions, cpus=9, ends=lambda item, attempt: died)
    with pytest.raises(WorkerError, match=r"^workers die whatever they do: "):
        list(do_all(cluster, 9, monkeypatch))
    assert set(cluster.attempts.values()) == {1}

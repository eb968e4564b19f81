"""Who is let at a run and killed: trainers, the service's jobs, the service, an MLflow server. Each a forked process.

The process that forks has imported what takes seconds and has no thread, no tensor and no connection of its own, so
that what is killed is a process like any other, only sooner there.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import traceback
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

os.environ |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
os.environ |= {"TRANSFORMERS_VERBOSITY": "error", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5", "CUDA_VISIBLE_DEVICES": ""}
os.environ |= {"MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "0", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}

from checkpoint.mlflow_connection import quieten
from launch.trainer.cpu_operator import choose_build_directory, load_cpu_operator

choose_build_directory()
quieten()

import mlflow.server.fastapi_app  # noqa: E402
import transformers  # noqa: E402
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: E402, F401, what a proof loads

from checkpoint import export, prove, tracking  # noqa: E402
from checkpoint.config import ServiceConfig  # noqa: E402
from checkpoint.jobs import Context, Job, Outcome, Performer  # noqa: E402
from checkpoint.journal import read_batches  # noqa: E402
from checkpoint.lease import hold_lease  # noqa: E402
from checkpoint.manifest import read_manifest  # noqa: E402
from checkpoint.service import Service  # noqa: E402
from checkpoint.tracking import Tracker  # noqa: E402
from launch import train  # noqa: E402
from launch.cluster.launcher import free_port  # noqa: E402
from launch.trainer import attempt  # noqa: E402, F401, imports deepspeed

RETENTION = {"keep_last": 1, "keep_every_steps": 40, "keep_best": 1, "disk_high_water_fraction": 1.0}
MAX_WAIT_S = 60.0


Begun = Callable[[], object]
Act = Callable[[Begun], int]


class Child:
    """A forked process that performs `act(begun)`; it says by `begun()` that what may be killed begins."""

    def __init__(self, act: Act, log: Path) -> None:
        reading, writing = os.pipe()
        self.log = log
        self.pid = os.fork()
        if self.pid == 0:
            os.close(reading)
            _be_child(act, writing, log)
        os.close(writing)
        self._pipe = reading
        self._status: int | None = None

    def wait_until_begun(self) -> None:
        os.read(self._pipe, 1)  # nothing, when it has ended

    def has_ended(self) -> bool:
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._status = status if pid else None
        return self._status is not None

    def kill(self) -> bool:
        """Whether it was killed: not if it had ended by itself."""
        if not self.has_ended():
            os.kill(self.pid, signal.SIGKILL)
        return self.end() == -signal.SIGKILL

    def end(self) -> int:
        if self._status is None:
            self._status = os.waitpid(self.pid, 0)[1]
        with contextlib.suppress(OSError):
            os.close(self._pipe)
        return os.waitstatus_to_exitcode(self._status)


def _be_child(act: Act, writing: int, log: Path) -> NoReturn:
    code = 70
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        code = act(lambda: os.write(writing, b"."))
    except SystemExit as error:
        code = int(error.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class InProcessJobs:
    """The service's jobs in its own process, so that one kill hits whatever it is at."""

    def __init__(self, context: Context) -> None:
        self._performer, self._waiting = Performer(context), list[Job]()

    def submit(self, job: Job) -> None:
        self._waiting.append(job)

    def poll(self) -> list[tuple[Job, Outcome]]:
        if not self._waiting:
            return []
        job = self._waiting.pop(0)
        return [(job, self._performer.perform(job))]

    def unfinished(self) -> tuple[Job, ...]:
        return tuple(self._waiting)

    def close(self) -> None:
        self._waiting.clear()


class Victims:
    """Of one run below a folder. `uri` is where its MLflow is: the database itself, or a server before it."""

    def __init__(self, folder: Path, config_file: Path, *, mlflow_by: str, exports: str) -> None:
        self.folder, self.config_file, self.exports = folder, config_file, exports
        self.runs, self.run = folder / "runs", folder / "runs" / "run"
        self.database = folder / "mlflow.db"
        self.server: Child | None = None
        self.uri = f"sqlite:///{self.database}"
        self._ports: set[str] = set()
        self._port = free_port() if mlflow_by == "server" else None
        making = Child(self._make_database, folder / "database.log")
        if making.end():
            raise SystemExit(making.log.read_text())
        if self._port is not None:
            self.uri = f"http://127.0.0.1:{self._port}"
            self.start_server()

    @property
    def _context(self) -> Context:
        config = ServiceConfig.model_validate(
            {
                "retention": RETENTION, "exports": self.exports, "poll_seconds": 0.05, "redraw_seconds": 5,
                "tracking_uri": self.uri, "jobs": {"first_pause_s": 0.1, "longest_pause_s": 0.1, "attempts": 1000},
            }
        )  # fmt: skip
        artifacts = (self.folder / "artifacts").as_uri() if self._port is None else None
        return Context(config=config, tracking_uri=self.uri, artifact_location=artifacts)

    def trainers(self, *, ranks: int, asynchronous: bool, steps: int | None = None) -> list[Child]:
        overrides = [f"checkpoint.asynchronous={asynchronous}", *([f"steps={steps}"] if steps else [])]
        port = str(free_port())
        self._ports.add(port)

        def act(rank: int) -> Act:
            def train_one(_: Begun) -> int:
                os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
                os.environ |= {"LOCAL_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
                return train.main([str(self.config_file), *overrides])

            return train_one

        return [Child(act(rank), self.folder / f"trainer-{rank}.log") for rank in range(ranks)]

    def job(self, kind: Any, *, step: int | None = None, batch_rows: int = 1000) -> Child:
        def act(begun: Begun) -> int:
            export.prove_directory = lambda directory, checkpoint: prove.examine(directory, read_manifest(checkpoint))
            tracking.read_batches = lambda path, position: read_batches(path, position, batch_rows=batch_rows)
            performer = Performer(self._context)
            begun()
            outcome = performer.perform(Job(kind=kind, run=self.run, step=step))
            print(outcome)
            # a server that was killed, and a checkpoint that somebody has just deleted, are nobody's fault
            return 0 if outcome.blame == "nobody" else 3 if outcome.blame == "machine" else 4

        return Child(act, self.folder / f"{kind}.log")

    def service(self, *, until_done: bool = False) -> Child:
        def act(begun: Begun) -> int:
            export.prove_directory = lambda directory, checkpoint: prove.examine(directory, read_manifest(checkpoint))
            context = self._context
            with hold_lease(self.runs):
                service = Service(self.runs, context.config, runner=InProcessJobs(context))
                begun()
                if not until_done:
                    service.run_forever()
                status = service.run_until_done()
            print(*status.problems, sep="\n")
            return 4 if status.problems else 0

        return Child(act, self.folder / "service.log")

    def clear_shared_memory(self) -> int:
        """DeepSpeed's buffers of ranks that were killed before they had taken the names off; how many there were."""
        buffers = [path for port in self._ports for path in Path("/dev/shm").glob(f"deepspeed_*_{port}_*")]
        for path in buffers:
            path.unlink()
        self._ports.clear()
        return len(buffers)

    def start_server(self) -> None:
        def act(_: Begun) -> int:
            import uvicorn

            os.environ |= {
                "_MLFLOW_SERVER_FILE_STORE": f"sqlite:///{self.database}",
                "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
                "_MLFLOW_SERVER_ARTIFACT_DESTINATION": str(self.folder / "artifacts"),
                "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
            }
            uvicorn.run(mlflow.server.fastapi_app.app, host="127.0.0.1", port=self._port, log_level="warning")
            return 0

        self.server = Child(act, self.folder / "server.log")
        deadline_s = time.monotonic() + MAX_WAIT_S
        while not _answers(f"{self.uri}/health"):
            if self.server.has_ended() or time.monotonic() > deadline_s:
                raise SystemExit(f"the MLflow server did not start: {(self.folder / 'server.log').read_text()[-2000:]}")
            time.sleep(0.02)

    def _make_database(self, _: Begun) -> int:
        Tracker(self.uri).client.search_experiments()
        return 0


def warm_up() -> None:
    """What each child would otherwise do for itself."""
    transformers.logging.disable_progress_bar()
    load_cpu_operator(lambda text: print(text, file=sys.stderr))


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except OSError:
        return False

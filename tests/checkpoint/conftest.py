"""Real ZeRO-3 checkpoints, made once a session, and run folders to spoil."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from checkpoint import export
from checkpoint.config import ServiceConfig
from checkpoint.events import EventWriter, events_file
from checkpoint.export import export_checkpoint
from checkpoint.jobs import Context, Job, Outcome, Performer
from checkpoint.manifest import MANIFEST_FILE, checkpoint_directory, encode_manifest, list_steps, read_manifest
from checkpoint.prove import examine
from checkpoint.run_record import RunKind, RunRecord, write_run
from checkpoint.service import Service
from checkpoint.tracking import Tracker

WRITER = Path(__file__).with_name("zero3_writer.py")


@pytest.fixture(scope="session")
def zero3_folder(tmp_path_factory: pytest.TempPathFactory, run_ranks: Callable[..., Any]) -> Callable[[int], Path]:
    """For a world size, the folder of what `zero3_writer.py` makes with it; each is made when it is first asked for."""
    root = tmp_path_factory.mktemp("zero3")

    def folder(world_size: int) -> Path:
        output = root / f"world-{world_size}"
        if not output.exists():
            run_ranks(world_size, WRITER, output)
        return output

    return folder


@pytest.fixture(scope="session")
def tokenizer_text() -> str:
    """A byte-level BPE of 300 tokens, <|endoftext|> at 0."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the loss falls while the model learns the text " * 20], trainer)
    assert tokenizer.get_vocab_size() <= 320
    return str(tokenizer.to_str())


@pytest.fixture(scope="session")
def pristine_runs(zero3_folder: Callable[[int], Path], tokenizer_text: str) -> Path:
    """A folder with the runs `run-float32` (untied) and `run-bfloat16` (tied), complete with record and log."""
    folder = zero3_folder(2)
    digest = f"sha256:{hashlib.sha256(tokenizer_text.encode()).hexdigest()}"
    for number, dtype in enumerate(("float32", "bfloat16")):
        run = folder / f"run-{dtype}"
        if (run / "run.json").exists():
            continue
        (run / "tokenizer.json").write_text(tokenizer_text)
        for step in list_steps(run):
            replace_in_manifest(run, step, tokenizer_digest=digest)
        write_run(run, run_record(run_key=str(number) * 32, name=f"small-{dtype}"))
        append_attempt(run, steps=4)
    return folder


@pytest.fixture
def make_run(pristine_runs: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A copy of one of the runs that a test may spoil: `make_run("float32")`."""

    def copy(dtype: str) -> Path:
        return shutil.copytree(pristine_runs / f"run-{dtype}", tmp_path / "runs" / f"run-{dtype}")

    return copy


@pytest.fixture(scope="session")
def exported_runs(pristine_runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the runs in which step 4 of `run-float32` is exported and published."""
    run = shutil.copytree(pristine_runs / "run-float32", tmp_path_factory.mktemp("exported") / "run-float32")
    assert export_checkpoint(run, 4).passed
    return run.parent


@pytest.fixture
def exported_run(exported_runs: Path, tmp_path: Path) -> Path:
    """A copy of the exported run that a test may spoil."""
    return shutil.copytree(exported_runs / "run-float32", tmp_path / "runs" / "run-float32")


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's tables, made once: each test's database is a copy."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    Tracker(f"sqlite:///{path}").client.search_experiments()
    return path


@dataclass
class InProcessJobs:
    """The service's jobs without processes of their own, each of which would take seconds to load its libraries."""

    context: Context
    performed: list[Job] = field(default_factory=list)
    waiting: list[Job] = field(default_factory=list)

    def submit(self, job: Job) -> None:
        self.waiting.append(job)

    def poll(self) -> list[tuple[Job, Outcome]]:
        jobs, self.waiting = self.waiting, []
        self.performed += jobs
        performer = Performer(self.context)
        return [(job, performer.perform(job)) for job in jobs]

    def unfinished(self) -> tuple[Job, ...]:
        return tuple(self.waiting)

    def close(self) -> None:
        self.waiting.clear()


@pytest.fixture
def make_service(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Service]:
    """`make_service(runs, exports="every")`: a service whose jobs and proofs run in this process."""
    monkeypatch.setattr(
        export, "prove_directory", lambda directory, checkpoint: examine(directory, read_manifest(checkpoint))
    )

    def make(runs: Path, **settings: Any) -> Service:
        config = ServiceConfig.model_validate({"redraw_seconds": 0, **settings})
        context = Service(runs, config).context
        return Service(runs, config, runner=InProcessJobs(context))

    return make


@pytest.fixture
def new_run(tmp_path: Path) -> Callable[..., Path]:
    """Makes an empty run folder below `tmp_path/runs`: `new_run("first")`."""

    def make(name: str = "small", *, run_key: str = "f" * 32, kind: RunKind = "training") -> Path:
        run = tmp_path / "runs" / name
        run.mkdir(parents=True)
        write_run(run, run_record(run_key=run_key, name=name).model_copy(update={"kind": kind}))
        return run

    return make


@pytest.fixture(scope="session")
def write_log() -> Callable[..., None]:
    """Appends an attempt's events as the trainer writes them; the loss is 10 - step/10 at every step."""
    return append_attempt


@pytest.fixture(scope="session")
def edit_manifest() -> Callable[..., None]:
    """Replaces fields of a checkpoint's manifest: `edit_manifest(run, 4, probe=None)`."""
    return replace_in_manifest


@pytest.fixture(scope="session")
def unlistable() -> Callable[..., AbstractContextManager[None]]:
    """A folder that cannot be listed while a block runs, as root always can: `with unlistable(folder, errno.EIO):`."""
    return fail_to_list


@contextmanager
def fail_to_list(folder: Path, number: int = errno.EACCES) -> Iterator[None]:
    def failing(real: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def list_or_fail(path: Any = ".") -> Any:
            if not isinstance(path, int) and Path(path) == folder:
                raise OSError(number, os.strerror(number), str(path))
            return real(path)

        return list_or_fail

    with pytest.MonkeyPatch.context() as patched:
        for name in ("listdir", "scandir"):
            patched.setattr(os, name, failing(getattr(os, name)))
        yield


def run_record(*, run_key: str, name: str) -> RunRecord:
    return RunRecord(
        run_key=run_key,
        name=name,
        created_ms=1_700_000_000_000,
        code_revision="abc",
        dataset_digests={"train": "sha256:data"},
        tokenizer_digest="sha256:tokenizer",
        versions={"torch": "2"},
    )


def append_attempt(
    run: Path, *, steps: int, first_step: int = 1, state: str = "finished", loss_offset: float = 10.0
) -> None:
    with EventWriter(events_file(run)) as log:
        log.write("state", step=first_step - 1, state="running")
        log.write("params", step=first_step - 1, **{"optimizer.learning_rate": 0.003, "steps": 1000})
        for step in range(first_step, steps + 1):
            losses = {"train/loss": loss_offset - step / 10, "train/learning_rate": 0.003}
            log.write("metrics", step=step, **losses)
        log.write("metrics", step=steps, **{"validation/loss": loss_offset - steps / 10})
        if state != "running":
            log.write("state", step=steps, state=state)


def replace_in_manifest(run: Path, step: int, **changes: object) -> None:
    checkpoint = checkpoint_directory(run, step)
    manifest = read_manifest(checkpoint).model_copy(update=changes)
    (checkpoint / MANIFEST_FILE).write_bytes(encode_manifest(manifest))

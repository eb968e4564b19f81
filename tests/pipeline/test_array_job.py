"""A run in shards, as the tasks of a Slurm array do it: in this process, and as real processes at the same time."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from configs.load import dump
from pipeline import workspace as workspace_module
from pipeline.array_job import RunShard, commit, run_shard
from pipeline.cli import main
from pipeline.config import PipelineConfig
from pipeline.deduplication.config import DeduplicationConfig, ExactConfig
from pipeline.document import PipelineError
from pipeline.lock import LockedError, locked
from pipeline.plan import Unit
from pipeline.run import run
from pipeline.workspace import only_run

ROOT = Path(__file__).resolve().parents[2]
MakeConfig = Callable[..., PipelineConfig]


def digests(dataset: Path) -> dict[str, str]:
    return {
        file.relative_to(dataset).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(dataset.rglob("*"))
        if file.is_file() and file.name not in ("report.json", "report.html", "status.json", ".lock")
    }


@pytest.fixture
def config(corpus: Path, make_config: MakeConfig) -> PipelineConfig:
    """Ten units, done in this process."""
    return make_config(unit_size_bytes=3000, executor="serial")


def test_shards_deduplicate_over_all_of_the_input(
    corpus: Path, make_config: MakeConfig, make_jsonl: Callable[[Path, Sequence[str]], Path], tmp_path: Path
) -> None:
    twice = json.loads((corpus / "0.jsonl").read_text().splitlines()[0])["text"]
    make_jsonl(corpus / "9.jsonl", [twice])
    one, many = (
        make_config(unit_size_bytes=3000, executor="serial", deduplication={"exact": {}}, output_dir=tmp_path / name)
        for name in ("one", "many")
    )
    run(one)
    for index in (1, 0):
        run_shard(many, RunShard(index, 2))
    assert commit(many).manifest.dropped["exact_duplicate"].documents >= 1
    assert digests(many.output_dir) == digests(one.output_dir)


def test_a_shuffle_is_refused_with_the_way_out(config: PipelineConfig) -> None:
    shuffled = config.model_copy(update={"shuffle_seed": 1})
    for deed in (lambda: run_shard(shuffled, RunShard(0, 2)), lambda: commit(shuffled)):
        with pytest.raises(PipelineError, match=r"shuffle_seed=1 does not go with --shard and commit; remove it, and"):
            deed()


def test_every_unit_is_of_one_shard() -> None:
    units = [Unit(index, "a", ()) for index in range(10)]
    shares = [[unit.index for unit in RunShard(index, 4).units(units)] for index in range(4)]
    assert shares == [[0, 4, 8], [1, 5, 9], [2, 6], [3, 7]]


def test_a_shard_is_written_i_of_n() -> None:
    assert RunShard.parse("3/8") == RunShard(3, 8)


@pytest.mark.parametrize("text", ["8/8", "-1/8", "1", "a/b", "0/0", "", "1/2/3"])
def test_another_shard_is_one_line(text: str) -> None:
    with pytest.raises(PipelineError, match=rf"^--shard {re.escape(text)}, wanted i/n with 0 ≤ i < n, such as 0/8$"):
        RunShard.parse(text)


def test_shards_and_commit_give_the_bytes_of_one_run(
    config: PipelineConfig, make_config: MakeConfig, tmp_path: Path
) -> None:
    training = {"train": {"vocab_size": 300, "sample_bytes": 5000}}
    one, many = (
        make_config(
            unit_size_bytes=3000, executor="serial", workers=None, tokenizer=training, output_dir=tmp_path / name
        )
        for name in ("one", "many")
    )
    run(one)
    results = [run_shard(many, RunShard(index, 3)) for index in (2, 0, 1)]
    assert sum(result.units for result in results) == 10
    assert not (many.output_dir / "manifest.json").exists()
    status = json.loads((many.output_dir / ".work" / "shards" / "2-of-3.json").read_bytes())
    assert (status["state"], status["units_total"]) == ("finished", results[0].units)
    result = commit(many)
    assert result.manifest.documents_in == 120
    assert digests(many.output_dir) == digests(one.output_dir)
    assert commit(many).was_finished
    assert run_shard(many, RunShard(0, 3)).units == 0


def test_commit_names_the_shards_that_are_missing(config: PipelineConfig) -> None:
    run_shard(config, RunShard(1, 3))
    expected = (
        r"^7 of 10 units are not done, of shards 0/3, 2/3 \(units 0, 2, 3, 5, 6 and 2 more\); run those shards "
        r"again, or `smollm2 pipeline run` without --shard to do the rest here$"
    )
    with pytest.raises(PipelineError, match=expected):
        commit(config)
    assert run(config).manifest.documents_in == 120


def test_commit_deduplicates_nothing_before_it_knows_of_all_units(
    config: PipelineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    deduplicated = config.model_copy(update={"deduplication": DeduplicationConfig(exact=ExactConfig())})
    run_shard(deduplicated, RunShard(0, 2))
    asked: list[PipelineConfig] = []
    monkeypatch.setattr("pipeline.run.deduplicate", lambda config, plan: asked.append(config))
    with pytest.raises(PipelineError, match=r"^5 of 10 units are not done, of shard 1/2"):
        commit(deduplicated)
    assert asked == []


def test_commit_of_nothing_is_one_line(config: PipelineConfig) -> None:
    with pytest.raises(PipelineError, match=r"^nothing to commit: no shard of test has begun in .*dataset; run each"):
        commit(config)


def test_a_shard_refuses_the_run_folder_of_another_run_before_it_works(config: PipelineConfig, tmp_path: Path) -> None:
    other = config.model_copy(update={"run_dir": tmp_path / "run"})
    run(other)
    mine = other.model_copy(update={"output_dir": tmp_path / "mine"})
    with pytest.raises(
        PipelineError, match=r"run_dir=.* tells of the dataset .*dataset, not of .*mine; choose another"
    ):
        run_shard(mine, RunShard(0, 2))
    assert not mine.output_dir.exists()
    run_shard(other, RunShard(0, 2))


def test_two_jobs_at_one_shard_are_refused(config: PipelineConfig) -> None:
    folder = config.output_dir / ".work" / "shards"
    folder.mkdir(parents=True)
    expected = r"^shard 1/3 is being done by another job \(pid \d+ on .+\); wait for it$"
    with locked(folder / "1-of-3.lock"), pytest.raises(PipelineError, match=expected):
        run_shard(config, RunShard(1, 3))


def test_shards_of_two_cuts_at_once_are_refused(config: PipelineConfig) -> None:
    folder = config.output_dir / ".work" / "shards"
    folder.mkdir(parents=True)
    expected = r"^shard 0/2 is being done \(pid \d+ on .+\), which shares units with 1/3; wait for it, or cut the run"
    with locked(folder / "0-of-2.lock"), pytest.raises(PipelineError, match=expected):
        run_shard(config, RunShard(1, 3))
    assert run_shard(config, RunShard(1, 3)).units == 3  # what is left of an earlier cut is no hindrance


def test_a_run_of_the_whole_and_a_shard_keep_each_other_out(config: PipelineConfig) -> None:
    expected = r"^another pipeline \(pid \d+ on .+\) is writing .*dataset; wait for it, or choose another output_dir$"
    with only_run(config.output_dir), pytest.raises(PipelineError, match=expected):
        run_shard(config, RunShard(0, 2))
    with only_run(config.output_dir, shared=True):
        for alone in (run, commit):
            with pytest.raises(PipelineError, match=expected):
                alone(config)


def test_a_shard_removes_what_killed_writers_of_its_units_left(config: PipelineConfig) -> None:
    run_shard(config, RunShard(0, 2))
    ours, theirs = (config.output_dir / f".data-0000{unit}-000.arrow.0a.partial" for unit in (1, 2))
    record = config.output_dir / ".work" / "units" / ".00001.json.0a.partial"
    for path in (ours, theirs, record):
        path.touch()
    run_shard(config, RunShard(1, 2))
    assert [path.exists() for path in (ours, theirs, record)] == [False, True, False]
    commit(config)
    assert not theirs.exists()


def test_a_second_shard_waits_for_the_tokenizer(
    config: PipelineConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    waited: list[bool] = []

    def refuse_once(path: Path, **options: bool) -> object:
        if path.name == "setup.lock" and not options.get("wait"):
            raise LockedError("pid 1")
        waited.append(bool(options.get("wait")))
        return locked(path, **options)

    monkeypatch.setattr(workspace_module, "locked", refuse_once)
    with caplog.at_level(logging.INFO):
        run_shard(config, RunShard(0, 2))
    assert waited == [False, True]
    assert "waiting for another shard of this run, which makes the tokenizer" in caplog.messages


def test_shards_at_the_same_time_train_one_tokenizer(
    corpus: Path, tmp_path: Path, make_config: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    training = {"train": {"vocab_size": 300, "sample_bytes": 5000}}
    config = make_config(unit_size_bytes=3000, executor="serial", workers=None, tokenizer=training)
    file = tmp_path / "config.yaml"
    file.write_text(dump(config))
    jobs = [start(["run", str(file), "--shard", f"{index}/2"]) for index in range(2)]
    outputs = [job.communicate(timeout=120) for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], outputs
    assert sum("entries trained on" in stderr for _, stderr in outputs) == 1
    assert outputs[0][0].startswith("test: shard 0/2 is done, 5 units, ")
    assert outputs[0][0].endswith(f"; when all are: smollm2 pipeline commit {file}\n")
    assert main(["commit", str(file)]) == 0
    assert capsys.readouterr().out.startswith("test: 120 documents, ")
    one = config.model_copy(update={"output_dir": tmp_path / "one"})
    run(one)
    assert digests(config.output_dir) == digests(one.output_dir)


def start(arguments: Sequence[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline", *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_bad_shard_is_one_line_of_the_command(
    config: PipelineConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text(dump(config))
    assert main(["run", str(tmp_path / "config.yaml"), "--shard", "2/2"]) == 2
    assert capsys.readouterr().err == "smollm2 pipeline: --shard 2/2, wanted i/n with 0 ≤ i < n, such as 0/8\n"


def test_a_shard_names_the_whole_command_to_commit_by(
    config: PipelineConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(dump(config))
    assert main(["run", str(file), f"output_dir={tmp_path}/other", "name=a b", "--shard", "0/1"]) == 0
    expected = f"smollm2 pipeline commit {file} output_dir={tmp_path}/other 'name=a b'\n"
    assert capsys.readouterr().out.endswith(f"; when all are: {expected}")


def test_the_slurm_array_example_runs_its_shard_and_commits_outside_an_array(tmp_path: Path) -> None:
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "smollm2").write_text(f'#!/bin/bash\nprintf "%s\\n" "$PWD" "$@" >> {tmp_path}/called\n')
    (programs / "smollm2").chmod(0o755)
    script = ["bash", str(ROOT / "configs" / "cluster" / "slurm_data.sh"), "c.yaml", "name=a b"]
    environment = {"PATH": os.environ["PATH"], "SLURM_SUBMIT_DIR": str(tmp_path)}
    array = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "8"}
    for variables in (array, {}):
        subprocess.run(script, env=environment | variables, cwd="/", check=True)
    folder = str(tmp_path)
    assert (tmp_path / "called").read_text().splitlines() == [
        *(folder, "pipeline", "run", "c.yaml", "name=a b", "--shard", "3/8"),
        *(folder, "pipeline", "commit", "c.yaml", "name=a b"),
    ]

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.load import load
from launch.data.packing import samples_in
from launch.data.schedule import Schedule
from launch.data.schedule import Stage as Whole
from pipeline.cli import main
from pipeline.mixture import MixtureFields, Stage, _preview_source, preview
from pipeline.shards.format import DatasetError, DatasetManifest, SplitRecord, TokenizerRecord, write_manifest

ROOT = Path(__file__).resolve().parents[2]


def make_dataset(folder: Path, *, tokens: int, tokenizer: str = "sha256:1") -> Path:
    folder.mkdir(parents=True)
    split = SplitRecord(documents=1, tokens=tokens, shards=())
    write_manifest(
        folder,
        DatasetManifest(
            name=folder.name,
            tokenizer=TokenizerRecord(digest=tokenizer, vocab_size=300, eos_token_id=0),
            splits={"train": split, "validation": split},
            documents_in=1,
            text_bytes_kept=1,
            config_digest="sha256:2",
        ),
    )
    return folder


def fields(sources: Sequence[tuple[Path, float]], **more: Any) -> MixtureFields:
    data = {
        "sources": [{"name": path.name, "path": str(path), "weight": weight} for path, weight in sources],
        "sequence_length": 10,
    }
    # two samples a step, and what else stands in a training config
    return MixtureFields.model_validate(
        {"name": "run", "data": data, "batch_tokens": 20, "steps": 100, "seed": 1} | more
    )


def test_epochs_and_the_step_of_the_first_repeat(tmp_path: Path) -> None:
    # 200 samples: 150 of web, 50 of code. web has 60 samples (601 tokens: each needs the token after it), code 100
    config = fields(
        [(make_dataset(tmp_path / "web", tokens=601), 3), (make_dataset(tmp_path / "code", tokens=1001), 1)]
    )
    web, code = preview(config).sources
    assert (web.tokens_read, web.tokens_available, web.epochs) == (1500, 601, 2.5)
    # 60 samples of web are read after 80 samples of the run, which are 40 steps
    assert (web.repeats_at_step, web.repeats_in_stage) == (41, "all")
    assert (code.tokens_read, code.epochs, code.repeats_at_step) == (500, 0.5, None)


def test_a_sample_needs_the_token_after_it(tmp_path: Path) -> None:
    # 200 samples of 59, not of 60
    (source,) = preview(fields([(make_dataset(tmp_path / "web", tokens=600), 1)])).sources
    assert source.epochs == pytest.approx(200 / 59)


def test_a_dataset_used_up_by_the_last_step_does_not_repeat(tmp_path: Path) -> None:
    (source,) = preview(fields([(make_dataset(tmp_path / "web", tokens=2001), 1)])).sources
    assert (source.epochs, source.repeats_at_step) == (1.0, None)


def test_later_stages_go_on_where_the_earlier_ended() -> None:
    stages = [Stage("first", 100, {"web": 1}), Stage("second", 100, {"web": 1, "code": 3})]
    # 100 samples in the first stage, then one in every two steps
    source = _preview_source("web", 1101, stages=stages, sequence_length=10, samples_per_step=2)
    assert source.tokens_by_stage == (1000, 250)
    assert (source.repeats_at_step, source.repeats_in_stage) == (71, "second")
    code = _preview_source("code", 101, stages=stages, sequence_length=10, samples_per_step=2)
    assert (code.tokens_by_stage, code.repeats_at_step) == ((0, 750), 57)


@settings(max_examples=200, deadline=None)
@given(
    weights=st.lists(st.integers(1, 60).map(lambda tenths: tenths / 10), min_size=1, max_size=5),
    tokens=st.lists(st.integers(40, 9000), min_size=5, max_size=5),
    samples_per_step=st.integers(1, 7),
)
def test_repeats_are_those_of_the_trainer_to_within_a_step(
    weights: list[float], tokens: list[int], samples_per_step: int
) -> None:
    names = [str(index) for index in range(len(weights))]
    stage = Stage("all", 10**7 * samples_per_step, dict(zip(names, weights, strict=True)))
    sizes = [samples_in(count, 10) for count in tokens[: len(weights)]]
    for name, count, sample in zip(
        names, tokens, Schedule([Whole(None, tuple(weights))]).first_repeats(sizes), strict=False
    ):
        source = _preview_source(name, count, stages=[stage], sequence_length=10, samples_per_step=samples_per_step)
        assert source.repeats_at_step is not None
        assert sample is not None
        # a source is spread evenly to within one sample, which may be as many of the run as its share asks for
        slack = 1 + float(1 / stage.share(name)) / samples_per_step
        assert abs(source.repeats_at_step - (sample // samples_per_step + 1)) <= slack


def test_stages_of_a_config_are_those_of_its_tokens(tmp_path: Path) -> None:
    config = fields([(tmp_path / "web", 1), (tmp_path / "code", 1)])
    data = config.data.model_dump() | {
        "stages": [
            {"until_tokens": 611, "weights": {"web": 1, "code": 0}},
            {"until_tokens": 1500, "weights": {"web": 1, "code": 1}},
            {"until_tokens": 9999, "weights": {"web": 0, "code": 1}},
        ]
    }
    result = preview(MixtureFields.model_validate(config.model_dump() | {"data": data}))
    # 200 samples of 10 tokens: up to 62, 150 and the end of the run
    assert [(stage.name, stage.samples) for stage in result.stages] == [("1", 62), ("2", 88), ("3", 50)]
    assert [source.tokens_by_stage for source in result.sources] == [(620, 440, 0), (0, 440, 500)]


def test_a_dataset_that_is_not_made_is_of_unknown_size(tmp_path: Path) -> None:
    result = preview(fields([(tmp_path / "web", 1)]))
    assert (result.sources[0].tokens_read, result.sources[0].epochs) == (2000, None)
    assert result.remarks == (f"web: {tmp_path}/web is not made yet; `smollm2 pipeline run` makes it",)


def test_a_dataset_in_a_store_is_of_unknown_size(tmp_path: Path) -> None:
    config = fields([(tmp_path / "web", 1)])
    source = {"name": "web", "path": "s3://bucket/web"}
    data = config.data.model_dump() | {"sources": [source]}
    result = preview(MixtureFields.model_validate(config.model_dump() | {"data": data}))
    assert result.remarks == ("web: s3://bucket/web lies in a store, which is not asked; name a local copy of it",)


def test_what_a_run_would_refuse_is_remarked(tmp_path: Path) -> None:
    small = make_dataset(tmp_path / "small", tokens=10)
    other = make_dataset(tmp_path / "other", tokens=900, tokenizer="sha256:3")
    result = preview(fields([(small, 1), (other, 1)]))
    assert result.remarks == (
        f"small: {small} has 10 training tokens, fewer than one sequence of 10 and the token after it",
        "the datasets were made with different tokenizers; a run refuses to mix them",
    )


def test_a_damaged_manifest_is_an_error(tmp_path: Path) -> None:
    (make_dataset(tmp_path / "web", tokens=10) / "manifest.json").write_text("{")
    with pytest.raises(DatasetError, match=r"manifest.json is not a dataset manifest"):
        preview(fields([(tmp_path / "web", 1)]))


@pytest.mark.parametrize("config", sorted((ROOT / "configs/train").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_training_config_can_be_previewed(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = preview(load(config, MixtureFields))
    assert sum(source.tokens_read for source in result.sources) == pytest.approx(
        sum(stage.samples for stage in result.stages) * result.sequence_length
    )


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    make_dataset(tmp_path / "web", tokens=601)
    file = tmp_path / "train.yaml"
    file.write_text(
        f"name: run\nmodel: nowhere.yaml\ndata:\n  sources:\n    - {{name: web, path: {tmp_path}/web, weight: 3}}\n"
        f"    - {{name: code, path: {tmp_path}/code}}\n  sequence_length: 10\nbatch_tokens: 20\nsteps: 100\n"
    )
    return file


def test_the_command_prints_stages_and_sources(config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mixture", str(config_file)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "run: 100 steps of 2 sequences of 10 tokens: 2K tokens",
        "",
        "stage  last step  tokens   web  code",
        "all          100      2K  1.5K   500",
        "",
        "source  share  reads  has  epochs              begins again",
        "web     75.0%   1.5K  601    2.50  step 41 (41% of the run)",
        "code    25.0%    500    ?       ?                         ?",
        "",
        f"code: {config_file.parent}/code is not made yet; `smollm2 pipeline run` makes it",
    ]


def test_the_command_prints_json_with_overrides(config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mixture", str(config_file), "steps=20", "--json"]) == 0
    import json

    web = json.loads(capsys.readouterr().out)["sources"][0]
    assert (web["tokens_by_stage"], web["epochs"], web["repeats_at_step"]) == ([300], 0.5, None)


def test_a_batch_of_less_than_a_sequence_is_one_line(config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mixture", str(config_file), "batch_tokens=9"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("batch_tokens=9 is less than one sequence of data.sequence_length=10; raise it")


@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        ("{web: 0}", "weights are all 0; give a source more"),
        ("{}", "weights are all 0; give a source more"),
        ("{web: -1}", "weights.web"),
        ("{web: nan}", "weights.web"),
        ("{web: inf}", "weights.web"),
    ],
)
def test_a_stage_without_a_share_is_one_line(
    config_file: Path, capsys: pytest.CaptureFixture[str], weights: str, reason: str
) -> None:
    assert main(["mixture", str(config_file), f"data.stages=[{{weights: {weights}}}]"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "data.stages" in line
    assert reason in line

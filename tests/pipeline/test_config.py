from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from configs.load import ConfigError, dump, load
from pipeline.config import PipelineConfig, config_digest, content_of, differences
from pipeline.plan import make_plan
from pipeline.source_config import HuggingFaceConfig, WarcConfig
from pipeline.tokenizer.encode import read_tokenizer
from pipeline.tokenizer.train import TokenizerError

RECIPES = sorted((Path(__file__).resolve().parents[2] / "configs" / "data").glob("*.yaml"))

MINIMAL = """
name: test
output_dir: out
sources: [{name: a, type: text, files: ["*.txt"]}]
tokenizer: {train: {vocab_size: 300}}
"""


@pytest.fixture
def minimal(tmp_path: Path) -> Path:
    path = tmp_path / "minimal.yaml"
    path.write_text(MINIMAL)
    return path


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_loads_and_survives_being_written(recipe: Path, tmp_path: Path) -> None:
    config = load(recipe, PipelineConfig)
    (tmp_path / "again.yaml").write_text(dump(config))
    assert load(tmp_path / "again.yaml", PipelineConfig) == config


def test_there_are_recipes_for_the_demo_and_the_four_kinds_of_text() -> None:
    assert {path.stem for path in RECIPES} >= {"demo", "fineweb-edu", "dclm", "stack-edu", "finemath", "cosmopedia"}


def test_the_demo_reads_about_20_mb_in_units_for_two_workers() -> None:
    plan = make_plan(load(next(path for path in RECIPES if path.stem == "demo"), PipelineConfig))
    # distributions leave out more or less of the library's own tests
    assert 8e6 < plan.size_bytes < 25e6
    assert len(plan.units) >= 4


def test_the_real_recipes_share_one_tokenizer() -> None:
    configs = [load(path, PipelineConfig) for path in RECIPES if path.stem != "demo"]
    assert {config.tokenizer.path for config in configs} == {Path("data/smollm2/tokenizer.json")}
    assert all(isinstance(source, HuggingFaceConfig | WarcConfig) for config in configs for source in config.sources)


def test_a_recipe_says_how_to_get_the_tokenizer_that_it_names() -> None:
    command = "tokenizer:  # hf download HuggingFaceTB/SmolLM2-135M tokenizer.json --local-dir data/smollm2\n"
    assert [path.stem for path in RECIPES if command not in path.read_text()] == ["demo"]
    told = r"name a tokenizer.json, fetch SmolLM2's \(docs/data.md\), or train one \(tokenizer.train\)$"
    with pytest.raises(TokenizerError, match=told):
        read_tokenizer(Path("none.json"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "tokenizer.train.vocab_size=65_537",
            r"tokenizer.train.vocab_size=65_537: input should be less than or equal to 65536",
        ),
        ("tokenizer.train.vocab_size=272", r"input should be greater than or equal to 273"),
        ("validation_fraction=1", r"validation_fraction=1: input should be less than 1"),
        ("max_bad_record_fraction=-0.1", r"max_bad_record_fraction=-0.1: input should be greater than or equal to 0"),
        ("output_dir=.", r"output_dir: \. has no name; wanted a folder that has one, such as dataset$"),
        ("output_dir=a/..", r"output_dir: a/\.\. has no name; wanted a folder that has one, such as a/\.\./dataset$"),
        ("output_dir=/", r"output_dir: / has no name; wanted a folder that has one, such as /dataset$"),
        ("workers=0", r"workers=0: input should be greater than or equal to 1"),
        (
            "shuffle_bucket_bytes=2147483649",  # its ids could be more than Arrow's 32 bits count
            r"shuffle_bucket_bytes=2147483649: input should be less than or equal to 2147483648",
        ),
        ("shard_size=3", r"unknown key shard_size; did you mean shard_size_bytes\?"),
        ("sources=[]", r"minimal.yaml with its overrides: sources is empty; wanted at least one"),
        ("sources.0.file=x", r"unknown key sources.0.file; did you mean files\?"),
        (
            "sources.0.type=xml",
            r"sources.0: unknown type=xml; known: jsonl, json_array, csv, parquet, arrow, text, warc, source_",
        ),
        ("tokenizer.path=t.json", r"tokenizer: wanted either path \(an existing tokenizer.json\) or train"),
        ("tokenizer.engine=tiktoken", r"tokenizer.engine=.*'auto', 'tokenizers' or 'splintr'"),
        ("tokenizer.eos_token=</s>", r"a trained tokenizer ends documents with <\|endoftext\|>; remove eos_token=</s>"),
        (
            "filters={length: {min_characters: 9}}",
            r"filters: wanted a list of filters, asked in its order, such as \[\{type: length, min_characters: 5\}\]$",
        ),
        (
            "filters=[{type: size}]",
            r"filters.0: unknown type=size; known: length, gopher_quality, gopher_repetition, c4, fineweb, la",
        ),
        (
            "filters=[{type: c4, min_sentence: 3}]",
            r"unknown key filters.0.min_sentence; did you mean min_sentences\?",
        ),
        (
            "filters=[{type: length, min_characters: 9, max_characters: 3}]",
            r"max_characters=3 is below min_characters=9; no text",
        ),
    ],
)
def test_a_mistake_is_one_line(minimal: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load(minimal, PipelineConfig, [override])
    assert len(str(caught.value).splitlines()) == 1


def test_two_sources_of_one_name_are_refused(make_config: Callable[..., PipelineConfig]) -> None:
    source: dict[str, Any] = {"name": "same", "type": "text", "files": ["a"]}
    with pytest.raises(ValueError, match="two sources are named 'same'; give each a name of its own"):
        make_config(sources=[source, source])


def test_load_from_disk_takes_no_revision() -> None:
    with pytest.raises(ValueError, match="load_from_disk takes a path only; remove config_name and revision"):
        HuggingFaceConfig(type="huggingface", name="a", path="b", loader="load_from_disk", revision="main")


@pytest.mark.parametrize("free", [{"workers": 3}, {"max_bad_record_fraction": 0.5}, {"output_dir": "elsewhere"}])
def test_the_digest_ignores_what_does_not_change_the_bytes(
    make_config: Callable[..., PipelineConfig], free: dict[str, Any]
) -> None:
    assert config_digest(make_config(**free)) == config_digest(make_config())


def test_the_digest_ignores_the_engine(make_config: Callable[..., PipelineConfig], tokenizer_file: Path) -> None:
    config = make_config(tokenizer={"path": tokenizer_file, "engine": "tokenizers"})
    assert config_digest(config) == config_digest(make_config())
    assert "engine" not in content_of(config)["tokenizer"]


def test_the_digest_follows_what_does(make_config: Callable[..., PipelineConfig]) -> None:
    assert config_digest(make_config(unit_size_bytes=99)) != config_digest(make_config())


def test_differences_name_the_keys(make_config: Callable[..., PipelineConfig]) -> None:
    before = content_of(make_config())
    after = content_of(make_config(unit_size_bytes=99, filters=[{"type": "length", "min_characters": 5}]))
    assert differences(before, after) == ["filters.0.min_characters: 1 → 5", "unit_size_bytes: null → 99"]


def test_the_digest_follows_the_files_that_filters_read(
    make_config: Callable[..., PipelineConfig], tmp_path: Path
) -> None:
    file = tmp_path / "words.txt"
    config = make_config(filters=[{"type": "banned_words", "path": file}])
    assert content_of(config)["filter_files"] == {str(file): None}
    file.write_text("one")
    before = config_digest(config)
    file.write_text("two")
    assert config_digest(config) != before


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("workers=4", "executor=serial works alone; remove workers=4, or choose executor=local"),
        ("max_worker_memory_bytes=1000000000", "executor=serial has no worker to end; remove max_worker_memory_bytes"),
    ],
)
def test_what_serial_cannot_do_is_one_line(minimal: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(minimal, PipelineConfig, ["executor=serial", override])


def test_the_executor_does_not_decide_the_bytes(minimal: Path) -> None:
    overrides = ["executor=ray", "workers=9", "max_worker_memory_bytes=1000000000"]
    assert config_digest(load(minimal, PipelineConfig, overrides)) == config_digest(load(minimal, PipelineConfig))

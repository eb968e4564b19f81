from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pytest
from tokenizers import Tokenizer

from pipeline import unit as unit_module
from pipeline.config import PipelineConfig
from pipeline.document import LongText
from pipeline.plan import make_plan
from pipeline.shards.format import digest_file
from pipeline.tokenizer import encode as encode_module
from pipeline.tokenizer.encode import Encoder
from pipeline.tokenizer.engine import FlatIds, TokenizersEngine
from pipeline.unit import Progress, UnitRecord, process_unit, split_of

MakeConfig = Callable[..., PipelineConfig]


@pytest.fixture
def process(tokenizer_file: Path) -> Callable[[PipelineConfig], UnitRecord]:
    """Do the only unit of a config, in this process."""

    def run(config: PipelineConfig) -> UnitRecord:
        (only,) = make_plan(config).units
        (config.output_dir / "validation").mkdir(parents=True)
        (config.output_dir / "units").mkdir()
        encoder = Encoder(tokenizer_file.read_bytes(), eos_token="<|endoftext|>")
        return process_unit(config, only, encoder, units_directory=config.output_dir / "units")

    return run


def ids_of(directory: Path) -> list[list[int]]:
    return [
        row
        for shard in sorted(directory.glob("*.arrow"))
        for row in pa.ipc.open_stream(shard.read_bytes()).read_all()["input_ids"].to_pylist()
    ]


def test_records_that_the_source_does_not_want_are_counted_and_are_not_bad(
    tmp_path: Path, make_config: MakeConfig, process: Callable[[PipelineConfig], UnitRecord]
) -> None:
    (tmp_path / "a.csv").write_text("text,language\none,en\ntwo,fr\nthree,en\nfour\n")
    source = {"name": "a", "type": "csv", "files": [str(tmp_path / "a.csv")]}
    tally = process(make_config(sources=[source | {"keep_if": [{"field": "language", "one_of": ["en"]}]}])).tally
    assert (tally.documents_in, tally.documents_kept, tally.documents_bad) == (4, 2, 1)
    assert {reason: dropped.documents for reason, dropped in tally.dropped.items()} == {
        "malformed_row": 1,
        "unwanted_language": 1,
    }
    assert tally.dropped["unwanted_language"].examples[0].content == "fr"
    assert tally.is_balanced()


def test_filters_change_what_is_encoded_counted_and_split(
    tmp_path: Path, make_config: MakeConfig, process: Callable[[PipelineConfig], UnitRecord]
) -> None:
    (tmp_path / "corpus").mkdir()
    texts = [f"{name}@a.org the shard" for name in "abcdefghij"] + ["k@a.org"]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (tmp_path / "corpus" / "a.jsonl").write_text(lines)
    filters = [{"type": "pii", "email_replacement": "x"}, {"type": "length", "min_characters": 2}]
    config = make_config(filters=filters, validation_fraction=0.5)
    tally = process(config).tally
    assert (tally.documents_kept, tally.text_bytes_kept) == (10, 10 * len("x the shard"))
    # equal texts now: all on one side
    assert sorted(map(len, (ids_of(config.output_dir), ids_of(config.output_dir / "validation")))) == [0, 10]
    assert (tally.dropped["too_short"].text_bytes, tally.dropped["too_short"].examples[0].content) == (7, "k@a.org")


def test_a_url_is_the_id_where_the_source_has_no_other(
    tmp_path: Path, make_config: MakeConfig, process: Callable[[PipelineConfig], UnitRecord]
) -> None:
    (tmp_path / "a.jsonl").write_text(
        '{"text": "one", "url": "http://bad.org/1"}\n{"text": "two", "url": "http://good.org/2"}\n'
    )
    source = {"name": "a", "type": "jsonl", "files": [str(tmp_path / "a.jsonl")], "id_field": "url"}
    tally = process(make_config(sources=[source], filters=[{"type": "url", "domains": ["bad.org"]}])).tally
    assert (tally.documents_kept, tally.dropped["url_domain"].documents) == (1, 1)


def test_ids_are_those_of_one_document_at_a_time(
    corpus: Path,
    make_config: MakeConfig,
    process: Callable[[PipelineConfig], UnitRecord],
    tokenizer_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(unit_module, "BATCH_CHARACTERS", 500)
    config = make_config(shard_size_bytes=2000)
    process(config)
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    tokenizer.encode_special_tokens = True
    expected: dict[str, list[list[int]]] = {"train": [], "validation": []}
    for file in sorted(corpus.iterdir()):
        for line in file.read_text().splitlines():
            text = json.loads(line)["text"]
            split = split_of(text, validation_fraction=config.validation_fraction)
            expected[split].append([*tokenizer.encode(text).ids, 0])
    assert ids_of(config.output_dir) == expected["train"]
    assert ids_of(config.output_dir / "validation") == expected["validation"]
    assert len(expected["validation"]) > 5


def test_the_split_follows_the_text_alone() -> None:
    assert split_of("abc", validation_fraction=0.0) == "train"
    # blake2b of 8 bytes of b"abc" is d8bb14d833d59559, over 2^64 that is 0.8466
    assert split_of("abc", validation_fraction=0.8465) == "train"
    assert split_of("abc", validation_fraction=0.8467) == "validation"
    for validation_fraction in (0.8465, 0.8467):
        in_parts = split_of(LongText(["a", "bc"]), validation_fraction=validation_fraction)
        assert in_parts == split_of("abc", validation_fraction=validation_fraction)


def test_the_record_says_what_was_written(
    corpus: Path, make_config: MakeConfig, process: Callable[[PipelineConfig], UnitRecord]
) -> None:
    config = make_config()
    record = process(config)
    assert UnitRecord.model_validate_json((config.output_dir / "units" / "00000.json").read_bytes()) == record
    for shards in record.shards.values():
        for shard in shards:
            assert digest_file(config.output_dir / shard.path) == shard.digest
    assert record.tally.documents_in == record.tally.documents_kept == 120
    assert record.tokens == sum(map(len, ids_of(config.output_dir) + ids_of(config.output_dir / "validation")))


def test_every_record_is_kept_or_dropped_under_a_reason(
    tmp_path: Path, make_config: MakeConfig, process: Callable[[PipelineConfig], UnitRecord]
) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.jsonl").write_bytes(
        b'{"text": "the shard"}\n{"text": ""}\n{"text": "way too long"}\n{"body": "x"}\n{"text": "\xff"}\n{"text\n'
    )
    tally = process(make_config(filters=[{"type": "length", "max_characters": 10}])).tally
    assert (tally.documents_in, tally.documents_kept, tally.text_bytes_kept) == (6, 1, 9)
    assert {reason: (dropped.documents, dropped.text_bytes) for reason, dropped in tally.dropped.items()} == {
        "too_short": (1, 0),
        "too_long": (1, 12),
        "missing_field": (1, 14),
        "invalid_utf8": (1, 14),
        "malformed_json": (1, 7),
    }


def test_a_text_that_the_tokenizer_has_no_tokens_for_is_dropped(
    tmp_path: Path, make_config: MakeConfig, tokenizer_file: Path
) -> None:
    tree = json.loads(tokenizer_file.read_bytes())
    del tree["model"]["vocab"]["Ā"]  # byte 00
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.jsonl").write_text('{"text": "\\u0000"}\n')
    config = make_config()
    (config.output_dir / "units").mkdir(parents=True)
    (unit,) = make_plan(config).units
    encoder = Encoder(json.dumps(tree).encode(), eos_token="<|endoftext|>")
    record = process_unit(config, unit, encoder, units_directory=config.output_dir / "units")
    assert record.tally.dropped["no_tokens"].documents == 1
    assert record.tally.is_balanced()
    assert record.tokens == 0


def test_progress_never_passes_the_size_of_the_input(
    corpus: Path, make_config: MakeConfig, tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unit_module, "BATCH_CHARACTERS", 500)
    monkeypatch.setattr(unit_module, "PROGRESS_INTERVAL_S", 0.0)
    config = make_config()
    (config.output_dir / "validation").mkdir(parents=True)
    (unit,) = make_plan(config).units
    told: list[Progress] = []
    encoder = Encoder(tokenizer_file.read_bytes(), eos_token="<|endoftext|>")
    record = process_unit(config, unit, encoder, units_directory=config.output_dir, tell=told.append)
    bytes_told = [progress.input_bytes for progress in told]
    assert len(told) > 5
    assert bytes_told == sorted(bytes_told)
    # the text is a little less than its lines of JSON
    assert 0.8 * unit.size_bytes < bytes_told[-1] <= unit.size_bytes
    assert told[-1].tokens == record.tokens


def test_shards_of_an_earlier_attempt_that_made_more_are_removed(
    corpus: Path, make_config: MakeConfig, tokenizer_file: Path
) -> None:
    config = make_config()
    (config.output_dir / "validation").mkdir(parents=True)
    (unit,) = make_plan(config).units
    folders = (config.output_dir, config.output_dir / "validation")
    made, *stale = ([folder / f"data-00000-{number:03d}.arrow" for folder in folders] for number in range(3))
    others = [config.output_dir / "data-00001-000.arrow", config.output_dir / "data-000000-000.arrow"]
    for path in (*itertools.chain(*stale), *others):
        path.touch()
    encoder = Encoder(tokenizer_file.read_bytes(), eos_token="<|endoftext|>")
    process_unit(config, unit, encoder, units_directory=config.output_dir)
    assert not any(path.exists() for path in itertools.chain(*stale))
    assert all(path.exists() for path in (*made, *others))


def test_a_unit_does_not_list_the_shards_of_all_units(
    corpus: Path, make_config: MakeConfig, tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config()
    (config.output_dir / "validation").mkdir(parents=True)
    (unit,) = make_plan(config).units
    encoder = Encoder(tokenizer_file.read_bytes(), eos_token="<|endoftext|>")
    for listing in ("glob", "iterdir"):
        monkeypatch.setattr(Path, listing, lambda path, *_: pytest.fail(f"{path} was listed"))
    assert process_unit(config, unit, encoder, units_directory=config.output_dir).tokens


class LateWrong:
    """An engine that gives other ids from the 80th text on."""

    name = "splintr"
    version = "0.0"

    def __init__(self, content: bytes) -> None:
        self._engine = TokenizersEngine(Tokenizer.from_str(content.decode()))
        self._texts = 0

    def encode(self, texts: Sequence[str]) -> FlatIds:
        flat = self._engine.encode(texts)
        self._texts += len(texts)
        return FlatIds(flat.ids + (self._texts > 80), flat.offsets)


def test_a_unit_whose_engine_differs_is_done_again_by_the_reference(
    corpus: Path,
    tmp_path: Path,
    make_config: MakeConfig,
    process: Callable[[PipelineConfig], UnitRecord],
    tokenizer_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # small batches and shards, so that shards of the wrong engine are finished before it is found out
    monkeypatch.setattr(unit_module, "BATCH_CHARACTERS", 500)
    monkeypatch.setattr(encode_module, "CHECK_EVERY", 10)
    expected = process(make_config(output_dir=tmp_path / "expected", shard_size_bytes=1024))
    config = make_config(shard_size_bytes=1024)
    (config.output_dir / "validation").mkdir(parents=True)
    stale = config.output_dir / f"data-00000-{len(expected.shards['train']):03d}.arrow"
    stale.write_bytes(b"of the first try")
    (unit,) = make_plan(config).units
    encoder = Encoder(tokenizer_file.read_bytes(), eos_token="<|endoftext|>")
    encoder.use(LateWrong(tokenizer_file.read_bytes()))
    record = process_unit(config, unit, encoder, units_directory=config.output_dir)
    assert record.shards == expected.shards
    assert record.tally == expected.tally
    assert record.encoding is not None
    assert record.encoding.engine.startswith("tokenizers ")
    assert record.encoding.difference is not None
    assert record.encoding.difference.startswith("splintr 0.0 differs from tokenizers ")
    assert not stale.exists()


def test_an_attempt_that_begins_late_leaves_the_shards_of_the_first(
    corpus: Path, make_config: MakeConfig, process: Callable[[PipelineConfig], UnitRecord], tokenizer_file: Path
) -> None:
    """A node that was thought dead begins the unit again when it is done already, and is cut off."""
    config = make_config()
    record = process(config)

    def cut_off(progress: Progress) -> None:
        raise KeyboardInterrupt

    encoder = Encoder(tokenizer_file.read_bytes(), eos_token="<|endoftext|>")
    (unit,) = make_plan(config).units
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unit_module, "PROGRESS_INTERVAL_S", 0.0)
        with pytest.raises(KeyboardInterrupt):
            process_unit(config, unit, encoder, units_directory=config.output_dir / "units", tell=cut_off)
    for shards in record.shards.values():
        for shard in shards:
            assert digest_file(config.output_dir / shard.path) == shard.digest


def test_a_header_alone_is_no_document(
    tmp_path: Path, make_config: MakeConfig, process: Callable[[PipelineConfig], UnitRecord]
) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "a.py").write_text("return 1\n")
    (tmp_path / "tree" / "b.py").write_text("")
    source = {"name": "code", "type": "source_tree", "root": str(tmp_path / "tree"), "special_tokens": True}
    tally = process(make_config(sources=[source], filters=[], validation_fraction=0)).tally
    assert (tally.documents_kept, tally.dropped["no_tokens"].documents) == (1, 1)


def test_the_url_filter_judges_urls_not_paths(
    tmp_path: Path, make_config: MakeConfig, process: Callable[[PipelineConfig], UnitRecord]
) -> None:
    (tmp_path / "casino").mkdir()
    lines = [{"text": "one", "url": "https://bad.example/casino"}, {"text": "two", "url": "https://good.example/"}]
    (tmp_path / "casino" / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    source = {"name": "web", "type": "jsonl", "files": [str(tmp_path / "casino" / "a.jsonl")]}
    filters = [{"type": "url", "words": ["casino"]}]
    with_urls = process(make_config(sources=[source | {"id_field": "url"}], filters=filters)).tally
    assert (with_urls.documents_kept, with_urls.dropped["url_word"].documents) == (1, 1)
    without = make_config(sources=[source], filters=filters, output_dir=tmp_path / "without")
    assert process(without).tally.documents_kept == 2

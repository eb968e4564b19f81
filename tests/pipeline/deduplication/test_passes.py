"""All passes, compared with a plain reference on random texts; and what they do when they are interrupted."""

from __future__ import annotations

import contextlib
import json
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from shutil import rmtree
from typing import Any

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import PipelineConfig
from pipeline.deduplication import passes
from pipeline.deduplication.config import DeduplicationConfig
from pipeline.deduplication.normalization import comparable_words
from pipeline.document import PipelineError
from pipeline.plan import make_plan
from pipeline.run import run

Outcomes = Callable[..., list[str]]

MODULUS = 1 << 64
GOLDEN = 0x9E3779B97F4A7C15


def by_plain_python(texts: Sequence[str], evaluations: Sequence[str], config: DeduplicationConfig) -> list[str]:
    """What `outcomes` gives, by dictionaries, sets and tuples: no arrays, no partitions."""
    contaminated = _contaminated(texts, evaluations, config)
    compared = [index for index in range(len(texts)) if index not in contaminated]
    result = dict.fromkeys(contaminated, "contaminated")

    parents = list(range(len(texts)))

    def root(index: int) -> int:
        while parents[index] != index:
            index = parents[index]
        return index

    def join(one: int, other: int) -> None:
        low, high = sorted((root(one), root(other)))
        parents[high] = low

    if config.exact:
        first: dict[str, int] = {}
        for index in compared:
            earlier = first.setdefault(_visible(texts[index]), index)
            if earlier != index:
                result[index] = "exact_duplicate"
                join(earlier, index)
    if config.minhash:
        buckets: dict[tuple[int, tuple[int, ...]], int] = {}
        for index in compared:
            for bucket in enumerate(_bands(texts[index], config)):
                join(buckets.setdefault(bucket, index), index)
    for index in compared:
        if root(index) != index:
            result.setdefault(index, "near_duplicate")

    seen: set[str] = set()
    for index, text in enumerate(texts):
        if index not in result:
            rest = _without_seen(text, seen, config) if config.paragraphs else text
            result[index] = f"kept: {rest}" if rest == text or rest.strip() else "duplicate_paragraphs"
    return [result[index] for index in range(len(texts))]


def _visible(text: str) -> str:
    return "".join(character for character in unicodedata.normalize("NFC", text) if character not in " \t\n\r\v\f")


def _contaminated(texts: Sequence[str], evaluations: Sequence[str], config: DeduplicationConfig) -> set[int]:
    if config.decontamination is None:
        return set()
    size = config.decontamination.ngram_words
    wanted = set().union(*(_ngrams(comparable_words(text), size) for text in evaluations))
    return {index for index, text in enumerate(texts) if wanted & _ngrams(comparable_words(text), size)}


def _ngrams(words: Sequence[bytes], size: int) -> set[tuple[bytes, ...]]:
    return {tuple(words[start : start + size]) for start in range(len(words) - size + 1)}


def _bands(text: str, config: DeduplicationConfig) -> list[tuple[int, ...]]:
    assert config.minhash is not None
    size, rows = config.minhash.ngram_words, config.minhash.rows_per_band
    words = [xxhash.xxh3_64_intdigest(word) or 1 for word in comparable_words(text)]
    words = words or [xxhash.xxh3_64_intdigest(_visible(text).encode())]
    words += [0] * (size - len(words))
    ngrams = [_mixed(_polynomial(words[start : start + size])) for start in range(len(words) - size + 1)]
    minhashes = []
    for row in range(config.minhash.bands * rows):
        multiplier = xxhash.xxh3_64_intdigest(f"{config.minhash.seed} multiplier {row}".encode()) | 1
        summand = xxhash.xxh3_64_intdigest(f"{config.minhash.seed} summand {row}".encode())
        minhashes.append(min((multiplier * ngram + summand) % MODULUS for ngram in ngrams))
    return [tuple(minhashes[start : start + rows]) for start in range(0, len(minhashes), rows)]


def _polynomial(words: Sequence[int]) -> int:
    value = 0
    for word in words:
        value = (value * GOLDEN + word) % MODULUS
    return value


def _mixed(value: int) -> int:
    value ^= value >> 33
    value = value * 0xFF51AFD7ED558CCD % MODULUS
    value ^= value >> 33
    value = value * 0xC4CEB9FE1A85EC53 % MODULUS
    return value ^ value >> 33


def _without_seen(text: str, seen: set[str], config: DeduplicationConfig) -> str:
    assert config.paragraphs is not None
    left = []
    for paragraph in text.split("\n"):
        visible = _visible(paragraph)
        if len(paragraph.strip()) < config.paragraphs.min_characters:
            left.append(paragraph)
        elif visible not in seen:
            seen.add(visible)
            left.append(paragraph)
    return "\n".join(left)


# few words, so that documents share them; a paragraph is a line
WORD = st.sampled_from(["one", "One", "two", "three", "four", "é", "e\u0301", "12", "!?", "🙂", "東京"])
LINE = st.lists(WORD, max_size=7).map(" ".join)
TEXT = st.lists(LINE, min_size=1, max_size=4).map("\n".join)
SECTIONS: dict[str, dict[str, Any]] = {
    "exact": {},
    "minhash": {"bands": 3, "rows_per_band": 2, "ngram_words": 2},
    "paragraphs": {"min_characters": 6},
    "decontamination": {"ngram_words": 4},
}


@settings(max_examples=100, deadline=None)
@given(
    units=st.lists(st.lists(TEXT, max_size=6), min_size=1, max_size=4),
    evaluations=st.lists(st.lists(WORD, min_size=4, max_size=6).map(" ".join), min_size=1, max_size=2),
    names=st.sets(st.sampled_from(sorted(SECTIONS)), min_size=1),
    partition_rows=st.integers(1, 40),
)
def test_outcomes_are_those_of_plain_python(
    outcomes: Outcomes,
    evaluation: Callable[..., dict[str, Any]],
    units: list[list[str]],
    evaluations: list[str],
    names: set[str],
    partition_rows: int,
) -> None:
    sections = {name: SECTIONS[name] for name in names}
    if "decontamination" in names:
        if not any(len(comparable_words(text)) >= 4 for text in evaluations):
            evaluations = ["one two three four"]
        sections["decontamination"] = evaluation(*evaluations, ngram_words=4)
    texts = [text for unit in units for text in unit]
    expected = by_plain_python(texts, evaluations, DeduplicationConfig.model_validate(sections))
    assert outcomes(sections, units, partition_rows=partition_rows) == expected


def test_the_first_of_equal_texts_stays_whatever_unit_it_is_in(outcomes: Outcomes) -> None:
    assert outcomes({"exact": {}}, [["a b", "c"], ["a  b\n", "d", "d"], [], ["A b"]]) == [
        "kept: a b",
        "kept: c",
        "exact_duplicate",
        "kept: d",
        "exact_duplicate",
        "kept: A b",
    ]


SENTENCE = "the quick brown fox jumps over the lazy dog and runs into the dark forest where nobody has seen it since"


def test_near_duplicates_follow_from_one_another(outcomes: Outcomes) -> None:
    words = [f"word{letter}" for letter in "abcdefghijklmnopqrstuvwxyz" * 8]
    drift = [" ".join(words[start : start + 150]) for start in (0, 3, 6)]
    assert outcomes({"minhash": {}}, [[SENTENCE, drift[0]], [drift[1]], [drift[2], SENTENCE.upper() + "!"]]) == [
        f"kept: {SENTENCE}",
        f"kept: {drift[0]}",
        "near_duplicate",
        "near_duplicate",
        "near_duplicate",
    ]


def test_a_paragraph_of_a_dropped_document_is_not_lost(outcomes: Outcomes) -> None:
    one, other = "the first paragraph", "the second paragraph"
    sections = {"paragraphs": {"min_characters": 10}, "exact": {}}
    assert outcomes(sections, [[f"{one}\n{one}\n}}", f"{one} \n{one}\n}}"], [f"{other}\n{one}\nend", f" {other}"]]) == [
        f"kept: {one}\n}}",
        "exact_duplicate",
        f"kept: {other}\nend",
        "duplicate_paragraphs",
    ]


PARAGRAPH = "a paragraph that two of them have"
UNITS = [
    [SENTENCE, f"{PARAGRAPH}\nmore", "alpha beta gamma delta epsilon"],
    [SENTENCE, f"{PARAGRAPH}\nless\nthan others say", f"{SENTENCE} once"],
    ["x alpha, beta GAMMA; delta y", "the end"],
]
ALL: dict[str, Any] = {"exact": {}, "minhash": {}, "paragraphs": {"min_characters": 20}}


def test_killed_at_any_file_it_goes_on_to_the_same_end(
    outcomes: Outcomes,
    deduplicate: Callable[..., PipelineConfig],
    evaluation: Callable[..., dict[str, Any]],
    tmp_path: Path,
) -> None:
    sections = ALL | {"minhash": {"bands": 5}, "decontamination": evaluation("alpha beta gamma delta", ngram_words=4)}
    whole = outcomes(sections, UNITS, partition_rows=100, dataset=tmp_path / "whole")
    assert {"exact_duplicate", "near_duplicate", "contaminated", "kept: less\nthan others say"} < set(whole)
    replace = Path.replace
    for files in count():
        left = files

        def replace_or_die(path: Path, target: Path) -> Path:
            nonlocal left
            if not left:
                raise KeyboardInterrupt
            left -= 1
            return replace(path, target)

        dataset = tmp_path / f"killed-{files}"
        dataset.mkdir()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Path, "replace", replace_or_die)
            with contextlib.suppress(KeyboardInterrupt):
                deduplicate(sections, UNITS, partition_rows=100, dataset=dataset)
                break
        assert outcomes(sections, UNITS, partition_rows=100, dataset=dataset) == whole
        for name in ("deduplication.json", "contaminated.jsonl"):
            assert (dataset / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    # evaluations 2, three units of 3, exact and 5 bands, clusters and verdicts, paragraphs, 2 reports, done
    assert files == 2 + 9 + 6 + 2 + 1 + 2 + 1


def test_what_is_done_is_not_repeated(
    deduplicate: Callable[..., PipelineConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deduplicate(ALL, UNITS, dataset=tmp_path)
    monkeypatch.setattr(passes, "_do", None)
    deduplicate(ALL, UNITS, dataset=tmp_path)
    (tmp_path / ".work" / "deduplication" / "done").unlink()
    done: list[tuple[str, int]] = []

    def do(what: str, make_task: object, items: Sequence[object], config: object) -> Iterator[object]:
        done.append((what, len(items)))
        return iter(())

    monkeypatch.setattr(passes, "_do", do)
    deduplicate(ALL, UNITS, dataset=tmp_path)
    assert done == [("units signed", 0), ("parts of the paragraphs matched", 0)]


@pytest.mark.parametrize(
    "name",
    [
        "verdicts.arrow",
        "clusters.json",
        "evaluations.arrow",
        "evaluations.json",
    ],
)
def test_an_emptied_file_is_named_and_to_remove_the_folder_helps(
    outcomes: Outcomes, evaluation: Callable[..., dict[str, Any]], tmp_path: Path, name: str
) -> None:
    sections = ALL | {"decontamination": evaluation("alpha beta gamma delta", ngram_words=4)}
    whole = outcomes(sections, UNITS, dataset=tmp_path)
    directory = tmp_path / ".work" / "deduplication"
    (directory / "done").unlink()
    (directory / name).write_bytes(b"")
    with pytest.raises(PipelineError, match=f"^{directory / name} is damaged; remove {directory} and run the same"):
        outcomes(sections, UNITS, dataset=tmp_path)
    rmtree(directory)
    assert outcomes(sections, UNITS, dataset=tmp_path) == whole


@pytest.mark.parametrize(
    ("name", "size_bytes"),
    [
        ("signatures/00000.json", 0),
        ("signatures/00000.arrow", 0),
        ("signatures/00000.contaminated.jsonl", 0),
        ("signatures/00000.contaminated.jsonl", 40),
        ("signatures/00000.contaminated.jsonl", None),
    ],
)
def test_a_unit_whose_signatures_are_cut_off_is_signed_again(
    outcomes: Outcomes,
    evaluation: Callable[..., dict[str, Any]],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    name: str,
    size_bytes: int | None,
) -> None:
    sections = ALL | {"decontamination": evaluation("alpha beta gamma delta", ngram_words=4)}
    whole = outcomes(sections, UNITS, dataset=tmp_path)
    listed = (tmp_path / "contaminated.jsonl").read_bytes()
    directory = tmp_path / ".work" / "deduplication"
    (directory / "done").unlink()
    content = (directory / name).read_bytes()
    assert content
    (directory / name).write_bytes(content[: -1 if size_bytes is None else size_bytes])
    caplog.clear()
    assert outcomes(sections, UNITS, dataset=tmp_path) == whole
    assert (tmp_path / "contaminated.jsonl").read_bytes() == listed
    assert (directory / name).read_bytes() == content
    assert caplog.messages[0] == f"{directory / name} is damaged; unit 0 is signed again"


def test_the_report_counts_reasons_clusters_and_paragraphs(
    deduplicate: Callable[..., PipelineConfig], evaluation: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    sections = ALL | {"decontamination": evaluation("alpha beta gamma delta", ngram_words=4)}
    deduplicate(sections, UNITS, dataset=tmp_path)
    assert json.loads((tmp_path / "deduplication.json").read_bytes()) == {
        "documents": 8,
        "dropped": {"near_duplicate": 1, "exact_duplicate": 1, "contaminated": 2},
        "clusters": {"3": 1},
        "paragraphs": {"compared": 7, "removed": 1},
        "evaluations": {"exam": 2},
    }
    first, second = map(json.loads, (tmp_path / "contaminated.jsonl").read_text().splitlines())
    assert first["document_id"] == "2"
    assert second["evaluation_record"].endswith("/0.txt")
    assert second == first | {"document_id": "0", "ngram": "alpha beta gamma delta", "evaluation": "exam"}


def test_evaluations_that_changed_meanwhile_are_refused(
    deduplicate: Callable[..., PipelineConfig], evaluation: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    section = evaluation("alpha beta gamma delta", ngram_words=4)
    deduplicate({"decontamination": section}, UNITS, dataset=tmp_path)
    (file,) = Path(section["evaluations"][0]["files"][0]).parent.iterdir()
    file.write_text("alpha beta gamma zeta")
    expected = r"the evaluation files have changed since the run in .* began; restore them, or remove .* to start over"
    with pytest.raises(PipelineError, match=expected):
        deduplicate({"decontamination": section}, UNITS, dataset=tmp_path)


def test_too_many_bad_records_stop_it_at_once(make_config: Callable[..., PipelineConfig], tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.jsonl").write_text('{"text": "a"}\n' + '{"body": "b"}\n' * 999)
    config = make_config(unit_size_bytes=1000, deduplication={"exact": {}})
    config.output_dir.mkdir()
    expected = (
        r"\d+ of \d+ records read so far are bad, more than max_bad_record_fraction=0.001 of all can be; "
        r"the first missing_field: .*a.jsonl@14 \(source corpus wants text_field=text; its fields: body\); "
        r"raise the limit and run again, or mend the source, remove "
        rf"{config.output_dir}/\.work and run again$"
    )
    with pytest.raises(PipelineError, match=expected):
        passes.deduplicate(config, make_plan(config))
    assert len(list((config.output_dir / ".work" / "deduplication" / "signatures").glob("*.json"))) < 14


def test_what_is_told_of_too_many_bad_records_helps(make_config: Callable[..., PipelineConfig], tmp_path: Path) -> None:
    corpus = tmp_path / "corpus" / "a.jsonl"
    corpus.parent.mkdir()
    corpus.write_text('{"text": "a"}\n' + '{"body": "b"}\n' * 9)
    fields: dict[str, Any] = {"deduplication": {"exact": {}}, "executor": "serial", "filters": []}
    for output in ("raised", "mended"):
        with pytest.raises(PipelineError, match="records read so far are bad"):
            run(make_config(output_dir=tmp_path / output, **fields))
    raised = run(make_config(output_dir=tmp_path / "raised", max_bad_record_fraction=0.9, **fields))
    assert raised.manifest.documents == 1
    corpus.write_text('{"text": "a"}\n' * 10)
    rmtree(tmp_path / "mended" / ".work")
    mended = run(make_config(output_dir=tmp_path / "mended", **fields)).manifest
    assert (mended.documents, mended.dropped["exact_duplicate"].documents) == (1, 9)

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.deduplication import ngrams as ngrams_module
from pipeline.deduplication.config import DecontaminationConfig
from pipeline.deduplication.evaluations import ContaminationSearch, EvaluationNgrams, Match, read_evaluations
from pipeline.deduplication.ngrams import WordHasher
from pipeline.document import PipelineError


def config_of(folder: Path, records: Sequence[Any], *, ngram_words: int = 3, **fields: Any) -> DecontaminationConfig:
    path = folder / "exam.jsonl"
    path.write_text("".join((record if isinstance(record, str) else json.dumps(record)) + "\n" for record in records))
    source = {"name": "exam", "type": "jsonl", "files": [str(path)], **fields}
    return DecontaminationConfig.model_validate({"evaluations": [source], "ngram_words": ngram_words})


def found(ngrams: EvaluationNgrams, *texts: str, ngram_words: int = 3) -> list[Match]:
    hasher = WordHasher()
    return ContaminationSearch(ngrams, ngram_words=ngram_words).first_matches([hasher(text) for text in texts])


def test_the_first_match_of_each_document_names_the_record(tmp_path: Path) -> None:
    records = [{"q": "Who was it?", "a": "the old man"}, {"q": "no", "a": "no"}, {"q": "Was it the cat", "a": "yes"}]
    ngrams = read_evaluations(config_of(tmp_path, records, template="{q} {a}"))
    third = len(json.dumps(records[0])) + len(json.dumps(records[1])) + 2
    assert found(ngrams, "x y z", "so: who WAS it, it the old", "it the", "we said: of it -- the CAT") == [
        Match(1, 1, "exam", f"{tmp_path}/exam.jsonl@0"),
        Match(3, 3, "exam", f"{tmp_path}/exam.jsonl@{third}"),
    ]


@given(
    documents=st.lists(st.lists(st.sampled_from("abcde"), max_size=12), min_size=1, max_size=4),
    evaluation=st.lists(st.sampled_from("abcde"), min_size=3, max_size=6),
)
def test_matches_are_those_of_plain_python(documents: list[list[str]], evaluation: list[str]) -> None:
    hasher = WordHasher()
    hashes, _ = ngrams_module.ngram_hashes(hasher(" ".join(evaluation)), np.array([len(evaluation)]), ngram_words=3)
    ngrams = EvaluationNgrams(np.unique(hashes), np.zeros(len(np.unique(hashes)), np.uint32), [("exam", "0")])
    wanted = {tuple(evaluation[start : start + 3]) for start in range(len(evaluation) - 2)}
    expected = []
    for index, words in enumerate(documents):
        places = [start for start in range(len(words) - 2) if tuple(words[start : start + 3]) in wanted]
        expected += [Match(index, places[0], "exam", "0")] if places else []
    assert found(ngrams, *map(" ".join, documents)) == expected


def test_a_long_document_is_searched_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ngrams_module.pieces_of, "__kwdefaults__", {"piece_words": 4})
    ngrams = read_evaluations(config_of(tmp_path, [{"text": "one two three"}]))
    for before in range(9):
        (match,) = found(ngrams, "x " * before + "one two three" + " x" * 5)
        assert match.word == before
    assert found(ngrams, "one two " * 9) == []


def test_what_is_too_short_to_be_found_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        read_evaluations(config_of(tmp_path, [{"text": "one two three four"}, {"text": "one two"}]))
    assert caplog.messages == [
        "decontamination: exam has 2 n-grams; 1 of its 2 records are shorter than 3 words and cannot be found"
    ]


def test_an_evaluation_without_any_ngram_is_refused(tmp_path: Path) -> None:
    expected = r"evaluation 'exam': none of its 1 records has 3 words, so none could be found; choose a template that"
    with pytest.raises(PipelineError, match=expected):
        read_evaluations(config_of(tmp_path, [{"text": "one two"}]))


@pytest.mark.parametrize(("record", "reason"), [({"body": "x"}, "missing_field"), ("{", "malformed_json")])
def test_a_bad_evaluation_record_is_refused(tmp_path: Path, record: Any, reason: str) -> None:
    expected = rf"evaluation 'exam': .*exam.jsonl@0 is bad \({reason}\); mend or remove it: what cannot be read cannot"
    with pytest.raises(PipelineError, match=expected):
        read_evaluations(config_of(tmp_path, [record]))


def test_two_evaluations_of_one_name_are_refused() -> None:
    source = {"name": "exam", "type": "text", "files": ["a"]}
    with pytest.raises(ValueError, match="two evaluations are named 'exam'; give each a name of its own"):
        DecontaminationConfig.model_validate({"evaluations": [source, source]})

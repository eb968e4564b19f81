from __future__ import annotations

import typing
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from pipeline.document import PipelineError
from pipeline.filter_config import FilterConfig, files_of
from pipeline.filters import words
from pipeline.filters.chain import RULES, prepare, rejection
from pipeline.filters.view import DocumentView


def filters(*sections: dict[str, object]) -> tuple[FilterConfig, ...]:
    return TypeAdapter(tuple[FilterConfig, ...]).validate_python(sections)


def test_every_config_has_its_rule() -> None:
    union, _ = typing.get_args(FilterConfig)
    types = [typing.get_args(config.model_fields["type"].annotation) for config in typing.get_args(union)]
    assert [name for (name,) in types] == list(RULES)


def test_the_first_that_objects_names_the_reason() -> None:
    short: dict[str, object] = {"type": "length", "min_characters": 9}
    gopher: dict[str, object] = {"type": "gopher_quality"}
    assert rejection(DocumentView("a"), filters(short, gopher)) == "too_short"
    assert rejection(DocumentView("a"), filters(gopher, short)) == "gopher_too_few_words"


def test_no_filter_keeps_everything() -> None:
    assert rejection(DocumentView(""), ()) is None


def test_a_filter_sees_the_text_that_the_one_before_left() -> None:
    pii: dict[str, object] = {"type": "pii", "email_replacement": ""}
    length: dict[str, object] = {"type": "length", "min_characters": 5}
    assert rejection(DocumentView("a@b.org"), filters(pii, length)) == "too_short"
    view = DocumentView("a@b.org")
    assert rejection(view, filters(length, pii)) is None
    assert view.text == ""


def test_files_are_looked_at_before_a_run(tmp_path: Path) -> None:
    chain = filters({"type": "length"}, {"type": "banned_words", "path": tmp_path / "none.txt"})
    assert files_of(chain) == [tmp_path / "none.txt"]
    with pytest.raises(PipelineError, match=r"none\.txt: cannot be read"):
        prepare(chain)
    with pytest.raises(PipelineError, match=r"none\.txt: cannot be read"):
        prepare(filters({"type": "url", "domains_path": tmp_path / "none.txt"}))


def test_lists_are_read_anew_for_each_run(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    phrases = filters({"type": "banned_words", "path": path})
    domains = filters({"type": "url", "domains_path": path})
    view = DocumentView("one", url="https://two.example")
    path.write_text("one\ntwo.example\n")
    prepare([*phrases, *domains])
    assert [rejection(view, chain) for chain in (phrases, domains)] == ["banned_words", "url_domain"]
    path.write_text("three\n")
    prepare([*phrases, *domains])
    assert [rejection(view, chain) for chain in (phrases, domains)] == [None, None]


def test_filters_without_files_are_always_ready() -> None:
    prepare(filters({"type": "length"}, {"type": "language", "languages": ["en"]}, {"type": "url", "words": ["a"]}))


def test_the_pattern_of_words_is_made_beforehand_where_a_text_is_looked_into_and_else_not_at_all() -> None:
    words._word.cache_clear()
    prepare(filters({"type": "length"}, {"type": "url", "words": ["a"]}))
    assert words._word.cache_info().currsize == 0
    prepare(filters({"type": "length"}, {"type": "gopher_quality"}))
    assert words._word.cache_info().currsize == 1

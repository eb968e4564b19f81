from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.document import BadRecord, Document, Record, UnwantedRecord
from pipeline.source_config import JsonlConfig
from pipeline.sources.fields import paths_of, record_of, value_at


def config_of(**fields: Any) -> JsonlConfig:
    return JsonlConfig.model_validate({"type": "jsonl", "name": "corpus", "files": ["a"], **fields})


def judge(record: dict[str, Any], **fields: Any) -> Record:
    config = config_of(**fields)
    return record_of(config, lambda path: value_at(record, path), location="here", size_bytes=9, example=b"example")


def kept(record: dict[str, Any], **condition: Any) -> bool:
    outcome = judge({"text": "one", **record}, keep_if=[condition])
    if isinstance(outcome, UnwantedRecord):
        kind = "missing" if value_at(record, condition["field"]) is None else "unwanted"
        assert outcome.reason == f"{kind}_{condition['field']}"
    return isinstance(outcome, Document)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("a", {"b": [{"c": "deep"}], "n": None}),
        ("a.b.0.c", "deep"),
        ("a.b.1.c", None),
        ("a.b.c", None),
        ("a.n.c", None),
        ("x.y", "a name with a point"),
        ("nothing", None),
    ],
)
def test_a_dotted_path_goes_through_objects_and_lists(path: str, value: object) -> None:
    assert value_at({"a": {"b": [{"c": "deep"}], "n": None}, "x.y": "a name with a point"}, path) == value


def test_nested_text_and_id() -> None:
    record = {"content": {"body": "one"}, "meta": {"id": 7}}
    assert judge(record, text_field="content.body", id_field="meta.id") == Document("7", "one")


@pytest.mark.parametrize(
    ("value", "expected"),
    [("x", "x"), (b"x\xff", "x\\xff"), (7, "7"), (0, "0")]
    # an integer of more than 64 bits, as JSON's reader gives it, and what names nothing
    + [(value, "here") for value in (123456789012345678901.0, 1.5, True, "", b"", None, {"a": 1}, ["a"])],
)
def test_an_id_is_text_or_an_integer_and_else_the_location(value: object, expected: str) -> None:
    assert judge({"text": "one", "id": value}, id_field="id") == Document(expected, "one")


@pytest.mark.parametrize(
    ("value", "url"),
    [
        ("https://a.example/1", "https://a.example/1"),
        (b"http://b.example", "http://b.example"),
        ("corpus/a.html", None),
        (7, None),
        (None, None),
    ],
)
def test_an_id_is_the_url_if_it_is_one(value: object, url: str | None) -> None:
    config = config_of(id_field="id")
    record = {"text": "one", "id": value}
    document = record_of(config, record.get, location="s3://bucket/a.jsonl@0", size_bytes=9, example=b"")
    assert isinstance(document, Document)
    assert document.url == url


def test_a_template_joins_fields_and_numbers() -> None:
    record = {"title": "A", "meta": {"year": 1999}, "body": "text"}
    assert judge(record, template="# {title} ({meta.year})\n\n{{{body}}}") == Document("here", "# A (1999)\n\n{text}")


@pytest.mark.parametrize(
    ("title", "reason"), [(None, "missing_field"), ([1], "not_text"), (True, "not_text"), (b"\xff", "invalid_utf8")]
)
def test_a_template_with_a_bad_field_is_a_bad_record(title: object, reason: str) -> None:
    outcome = judge({"title": title, "body": "text"}, template="{title}{body}")
    assert isinstance(outcome, BadRecord)
    assert outcome.reason == reason


@pytest.mark.parametrize("value", [None, 5, ["a"], {"a": 1}])
def test_a_text_that_is_sometimes_null_or_a_number_is_a_bad_record(value: object) -> None:
    outcome = judge({"text": value})
    assert isinstance(outcome, BadRecord)
    assert outcome == BadRecord("here", "missing_field" if value is None else "not_text", 9, "example")


def test_one_of_compares_as_text() -> None:
    assert kept({"language": "en"}, field="language", one_of=["en", "de"])
    assert kept({"language": b"de"}, field="language", one_of=["en", "de"])
    assert not kept({"language": "fr"}, field="language", one_of=["en", "de"])
    assert kept({"level": 3.0}, field="level", one_of=[3])
    assert kept({"level": "3"}, field="level", one_of=[3])
    assert not kept({"level": 1}, field="level", one_of=[True])
    assert kept({"level": True}, field="level", one_of=[True])


def test_bounds_are_included_and_numbers_may_be_text() -> None:
    assert kept({"score": 3}, field="score", min_value=3, max_value=4)
    assert kept({"score": "4.0"}, field="score", min_value=3, max_value=4)
    assert not kept({"score": 2.99}, field="score", min_value=3)
    assert not kept({"score": 4.01}, field="score", max_value=4)


@pytest.mark.parametrize("score", [None, "good", float("nan"), [4], "1_0", b"1_0"])
def test_what_is_no_number_does_not_pass_a_bound(score: object) -> None:
    assert not kept({"score": score}, field="score", min_value=3)


def test_a_record_without_the_field_of_a_condition_is_told_apart() -> None:
    condition = {"field": "language", "one_of": ["en"]}
    for record in ({"lang": "en"}, {"language": None}):
        assert judge({"text": "one", **record}, keep_if=[condition]) == UnwantedRecord(
            "here", "missing_language", 9, "example"
        )


def test_conditions_are_asked_before_the_text() -> None:
    condition = {"field": "language", "one_of": ["en"]}
    assert judge({"language": "fr"}, keep_if=[condition]) == UnwantedRecord("here", "unwanted_language", 9, "fr")


def test_every_field_that_is_read_is_known_once() -> None:
    condition = {"field": "meta.score", "min_value": 1}
    assert paths_of(config_of(template="{a} {b.c} {a}", id_field="b.c", keep_if=[condition])) == (
        "a",
        "b.c",
        "meta.score",
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"template": "{a}", "text_field": "b"}, "either text_field or template, not both"),
        ({"template": "no field"}, r"wanted fields such as \{title\}"),
        ({"template": "{}"}, r"wanted fields such as \{title\}"),
        ({"template": "{a:>9}"}, "without a format"),
        ({"template": "{a"}, r"write a brace as \{\{ or \}\}"),
        ({"keep_if": [{"field": "a"}]}, "wanted either one_of or a bound"),
        ({"keep_if": [{"field": "a", "one_of": ["x"], "min_value": 1}]}, "wanted either one_of or a bound"),
        ({"keep_if": [{"field": "a", "min_value": 2, "max_value": 1}]}, "max_value=1.0 is below min_value=2.0"),
    ],
)
def test_a_mistake_in_the_config_is_told(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config_of(**fields)

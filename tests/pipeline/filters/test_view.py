from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.filters.view import _SENTENCE_END, DocumentView, sentences_of_line


def test_parts_of_a_text() -> None:
    view = DocumentView("One, two.\nThree! Four\n\n\n  \nfive")
    assert view.lines == ["One, two.", "Three! Four", "", "", "  ", "five"]
    assert view.filled_lines == ["One, two.", "Three! Four", "five"]
    assert view.paragraphs == ["One, two.\nThree! Four", "  \nfive"]
    assert DocumentView("\na\n\n\n\nb\n\n").paragraphs == ["a", "b"]
    assert view.words == ["One", ",", "two", ".", "Three", "!", "Four", "five"]
    assert view.sentences == ["One, two.", "Three!", "Four", "five"]
    assert view.word_counts["One"] == 1


def test_parts_are_made_once() -> None:
    view = DocumentView("a b")
    assert view.words is view.words
    assert view.lines is view.lines


def test_a_new_text_has_new_parts() -> None:
    view = DocumentView("a b\n\nc.")
    parts = ("lines", "filled_lines", "paragraphs", "words", "word_counts", "sentences")
    before = {part: getattr(view, part) for part in parts}
    view.text = "d"
    assert view.words == ["d"]
    assert {part: list(getattr(view, part)) for part in parts} == {part: ["d"] for part in parts}
    assert list(before["words"]) == ["a", "b", "c", "."]


def test_the_same_text_keeps_its_parts() -> None:
    view = DocumentView("a b")
    words = view.words
    view.text = "".join(["a", " b"])
    assert view.words is words


@pytest.mark.parametrize(
    ("line", "sentences"),
    [
        ("", []),
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("He said “go.” Then he left.", ["He said “go.”", "Then he left."]),
        ("It is 3.14 now.", ["It is 3.14 now."]),
        ("So, e.g. this, says J. Smith.", ["So, e.g. this, says J. Smith."]),
        ("Wait... no. Yes", ["Wait... no.", "Yes"]),
        ("一。二\uff01三", ["一。", "二\uff01", "三"]),
        ("What?! Yes.", ["What?!", "Yes."]),
    ],
)
def test_sentences(line: str, sentences: list[str]) -> None:
    assert sentences_of_line(line) == sentences


# as it was before it had to be linear
PLAIN_SENTENCE_END = re.compile(
    r"(?:(?<!\.)(?<!\b\w)\.(?!\.)|[!?])[!?]*[\"')\]\u2019\u201d]*(?=\s)|[\u3002\uff01\uff1f]"
)


@settings(max_examples=1000)
@given(line=st.text(".!?\"') a\n\u3002", max_size=30))
def test_sentences_end_where_the_plain_pattern_says(line: str) -> None:
    ends = [match.end() for match in PLAIN_SENTENCE_END.finditer(line)]
    assert [match.end() for match in _SENTENCE_END.finditer(line)] == ends


@pytest.mark.timeout(60)
def test_a_long_run_of_marks_takes_no_quadratic_time() -> None:
    line = "!" * 1_000_000 + "x"  # the plain pattern takes hours
    assert sentences_of_line(line) == [line]

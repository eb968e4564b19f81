from __future__ import annotations

from typing import Any

import pytest

from pipeline.filter_config import C4Config
from pipeline.filters.c4 import rejection
from pipeline.filters.view import DocumentView

CONFIG = C4Config(type="c4")
GOOD = "This is a fine sentence."


def cleaned(line: str, **fields: Any) -> str | None:
    """What stays of a line behind three good ones, None if nothing does; the reason if the page goes."""
    view = DocumentView("\n".join([*[GOOD] * 3, line]))
    reason = rejection(view, CONFIG.model_copy(update=fields))
    if reason is not None:
        return reason
    return view.text.split("\n")[3] if view.text.count("\n") == 3 else None


def test_three_sentences_are_enough_on_lines_or_on_one() -> None:
    for between in (" ", "\n", "\n\n", "\r\n"):
        assert rejection(DocumentView(between.join([GOOD] * 3)), CONFIG) is None
        assert rejection(DocumentView(between.join([GOOD] * 2)), CONFIG) == "c4_too_few_sentences"


def test_a_dropped_page_keeps_its_text() -> None:
    view = DocumentView("no end\n" + GOOD)
    assert rejection(view, CONFIG) == "c4_too_few_sentences"
    assert view.text == "no end\n" + GOOD


def test_a_removed_line_has_no_sentences() -> None:
    assert (
        rejection(DocumentView("\n".join([GOOD] * 2 + ["A line of two sentences. Without an end"])), CONFIG)
        == "c4_too_few_sentences"
    )


@pytest.mark.parametrize("mark", [".", "!", "?", '"', '."'])
def test_a_line_with_a_terminal_mark_stays(mark: str) -> None:
    assert cleaned(f"and here are more words{mark}") == f"and here are more words{mark}"


@pytest.mark.parametrize("mark", ["", ":", "...", ".)", "\u2026", ",", "'", "\u201d"])
def test_a_line_without_one_goes(mark: str) -> None:
    assert cleaned(f"and here are more words{mark}") is None
    assert cleaned(f"and here are more words{mark}", require_terminal_mark=False) == f"and here are more words{mark}"


def test_five_words_a_line_are_enough() -> None:
    assert cleaned("five words are right here.") == "five words are right here."
    assert cleaned("four words are here.") is None


def test_a_word_of_a_thousand_characters_stays() -> None:
    assert cleaned("a b c d " + "x" * 999 + ".") is not None
    assert cleaned("a b c d " + "x" * 1000 + ".") is None


def test_lines_are_stripped() -> None:
    assert cleaned("  and here are more words. \t") == "and here are more words."


@pytest.mark.parametrize(
    "phrase",
    ["JavaScript", "Terms of Use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies"],
)
def test_lines_of_notices_go(phrase: str) -> None:
    assert cleaned(f"See also the {phrase} of ours.") is None


def test_a_bracket_in_the_line_of_a_notice_is_not_seen() -> None:
    assert cleaned('function go() { alert("JavaScript is off!"') is None


def test_a_page_with_lorem_ipsum_goes() -> None:
    assert cleaned("Lorem Ipsum dolor sit amet.") == "c4_lorem_ipsum"
    assert cleaned("Lorem Ipsum dolor sit amet.", reject_lorem_ipsum=False) == "Lorem Ipsum dolor sit amet."


def test_a_page_with_a_curly_bracket_in_a_line_that_stays_goes() -> None:
    assert cleaned("a { b c d.") == "c4_curly_bracket"
    assert cleaned("a { b c d") is None
    assert cleaned("a { b c d.", reject_curly_brackets=False) == "a { b c d."


def test_citations_are_removed_before_the_end_is_looked_at() -> None:
    assert cleaned("Some[1] words[edit] are also here.[citation needed]") == "Some words are also here."
    assert cleaned("Some[1] words are [a].[2]", remove_citations=False) is None
    assert cleaned("Some words [ 3 ] [1,2] [a] are.") == "Some words [ 3 ] [1,2] [a] are."


def test_an_empty_line_is_judged_by_its_end_where_lines_need_no_words() -> None:
    assert cleaned("", min_words_per_line=0) is None
    assert cleaned("", min_words_per_line=0, require_terminal_mark=False) == ""

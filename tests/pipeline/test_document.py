from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.document import EXAMPLE_CHARACTERS, Document, LongText, one_line, shorten


@given(st.text(st.characters(categories=("Cs", "Ll"))) | st.binary() | st.lists(st.binary()) | st.none())
def test_an_example_is_short_and_always_utf8(content: object) -> None:
    text = shorten(content)
    text.encode()
    assert len(text) <= EXAMPLE_CHARACTERS + 1


def test_what_is_not_utf8_is_escaped() -> None:
    assert shorten(b"a\xff") == "a\\xff"
    assert shorten("a\udcff") == "a\\udcff"
    assert shorten("naïve") == "naïve"
    assert shorten("x" * 201) == "x" * 200 + "…"


def test_an_error_of_several_lines_is_one() -> None:
    assert one_line(ValueError("a\n   b\tc")) == "a b c"
    assert one_line(ValueError("x" * 201)) == "x" * 200


def test_a_text_in_parts_is_one_text() -> None:
    text = LongText(["one ", "😀 ", "two"])
    assert len(text) == 9
    assert Document(document_id="a", text=text).whole_text == "one 😀 two"
    assert text.parts == ["one 😀 two"]


def test_a_text_whose_parts_are_taken_still_has_its_beginning() -> None:
    document = Document(document_id="a", text=LongText(["one ", "two"]))
    assert isinstance(document.text, LongText)
    assert list(document.text.take()) == ["one ", "two"]
    assert (len(document.text), document.beginning) == (0, "one ")

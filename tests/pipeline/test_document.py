from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.document import EXAMPLE_CHARACTERS, one_line, shorten


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

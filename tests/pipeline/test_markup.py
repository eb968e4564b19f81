from __future__ import annotations

from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st

from pipeline.markup import Markup, element, join, visible


class Tags(HTMLParser):
    """The names of the tags in a page, and its text."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.text = ""
        self.feed(content)
        self.close()

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.names.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_text_is_escaped_and_markup_is_not() -> None:
    assert element("p", "a<b>&", element("b", "c"), class_="x") == '<p class="x">a&lt;b&gt;&amp;<b>c</b></p>'
    assert join(["<", Markup("<i></i>")]) == "&lt;<i></i>"


def test_attributes_are_escaped_and_none_is_left_out() -> None:
    assert element("a", title='"><script>', stroke_width=2, open=None) == (
        '<a title="&quot;&gt;&lt;script&gt;" stroke-width="2"></a>'
    )


def test_what_does_not_print_is_shown() -> None:
    # a control, a mark that turns the direction of the text, a line end
    assert visible("a\x00b\u202ec\nd é 東 🙂") == "a\\x00b\\u202ec↵d é 東 🙂"


@given(st.text())
def test_no_text_makes_an_element(text: str) -> None:
    page = Tags(element("p", text, title=text))
    assert page.names == ["p"]
    assert page.text == visible(text)

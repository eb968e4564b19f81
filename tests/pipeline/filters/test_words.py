from __future__ import annotations

import string
import unicodedata
from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.filters.words import words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (" \n\t\u3000", []),
        ("One, two.", ["One", ",", "two", "."]),
        ("os.path x==y me@site.org snake_case", ["os.path", "x==y", "me@site.org", "snake_case"]),
        ("well-known and/or a:b a=b", ["well", "-", "known", "and", "/", "or", "a", ":", "b", "a", "=", "b"]),
        ("1,000 12:30 1/n n=1 utf-8", ["1,000", "12:30", "1/n", "n=1", "utf-8"]),
        ("1-2 a,1 1:a", ["1", "-", "2", "a", ",", "1", "1", ":", "a"]),
        ('std::map a->b "a","b" {p}/x', ["std::map", "a->b", '"', 'a","b', '"', "{", "p}/x"]),
        ("yes--no", ["yes", "--", "no"]),
        ("John's don\u2019t 'tis boys'", ["John", "'s", "don", "\u2019t", "'", "tis", "boys", "'"]),
        ("foo('bar')", ["foo('bar", "'", ")"]),
        ("--help -x a-x /usr .5 @me", ["--help", "-x", "a", "-", "x", "/usr", ".5", "@me"]),
        ("(-x `--y` ~/z {-x", ["(", "-x", "`", "--y", "`", "~/z", "{", "-", "x"]),
        ("see https://a.org/b?c=d.", ["see", "https://a.org/b?c=d", "."]),
        ("a://b", ["a://b"]),
        ("日本語、テ", ["日", "本", "語", "、", "テ"]),
        ("हिन्दी café cafe\u0301 \U0001d518", ["हिन्दी", "café", "cafe\u0301", "\U0001d518"]),
        ("wait... -- ~~~ ?! 👍", ["wait", "...", "--", "~~~", "?", "!", "👍"]),
        ("__init__ **b**", ["_", "_", "init", "_", "_", "*", "*", "b", "*", "*"]),
    ],
)
def test_the_rule(text: str, expected: list[str]) -> None:
    assert words(text) == expected


UNSPACED = ("\u0e00-\u0eff", "\u1000-\u109f", "\u1780-\u17ff", "\u3040-\u30ff", "\u3400-\u9fff", "\uf900-\ufaff")
ADDRESSES = ("http://", "https://", "ftp://", "file://")


def is_unspaced(character: str) -> bool:
    return any(low <= character <= high for low, _, high in UNSPACED) or "\U00020000" <= character <= "\U0003ffff"


def is_letter(character: str) -> bool:
    if is_unspaced(character):
        return False
    if character > "\uffff":
        return character <= "\U0001efff"
    return character.isalnum() or unicodedata.category(character)[0] == "M"


def ties(marks: str, before: str, after: str) -> bool:
    """Whether marks between two characters tie their words."""
    if not marks or not all(mark in string.punctuation for mark in marks):
        return False
    left, right = before in string.digits, after in string.digits
    if len(marks) > 1:
        return not marks.startswith("--")
    return {
        ",": left and right,
        ":": left and right,
        "/": left or right,
        "=": left or right,
        "-": right and not left,
        **dict.fromkeys("\"'<>", False),
    }.get(marks, True)


def slow_words(text: str) -> list[str]:
    """The rule of `pipeline/filters/words.py`, character by character."""
    found = []
    start = 0
    while start < len(text):
        end = end_of_word(text, start)
        if end > start:
            found.append(text[start:end])
        start = max(end, start + 1)
    return found


def end_of_word(text: str, start: int) -> int:
    def skip(position: int, wanted: Callable[[str], bool]) -> int:
        while position < len(text) and wanted(text[position]):
            position += 1
        return position

    if text[start].isspace():
        return start
    if address := next((scheme for scheme in ADDRESSES if text.startswith(scheme, start)), None):
        begin = start + len(address)
        end = skip(begin, lambda character: not character.isspace() and character not in '<>"')
        while end > begin and not (text[end - 1].isalnum() or text[end - 1] in "_/"):
            end -= 1
        if end > begin:
            return end
    first = start
    if start == 0 or text[start - 1].isspace() or text[start - 1] in "([\"'`":
        first = skip(start, lambda character: character in "-+/.@~\\")
    end = skip(first, is_letter)
    if end > first:
        while True:
            marks_end = skip(end, lambda character: character in string.punctuation)
            next_end = skip(marks_end, is_letter)
            if next_end == marks_end or not ties(text[end:marks_end], text[end - 1], text[marks_end]):
                return end
            end = next_end
    if (
        text[start] in "'\u2019"
        and start > 0
        and is_letter(text[start - 1])
        and is_letter(text[start + 1 : start + 2] or " ")
    ):
        return skip(start + 1, is_letter)
    if text[start] in "-.~^|":
        return skip(start, lambda character: character in "-.~^|")
    return start + 1


ANY_TEXT = (
    st.text()
    | st.text(alphabet="aZ9_.,:/=-'\u2019@<\"( \nhttps\u65e5\u0301")
    | st.lists(
        st.sampled_from(["http://", "--", "::", "'s", "a", "B", "1", "-", ".", ",", "/", "=", " ", "#", "(", "\u65e5"])
    ).map("".join)
)


@given(ANY_TEXT)
@settings(max_examples=500)
@example("http://")
@example("http://!a!")
def test_the_words_are_those_of_the_rule_read_slowly(text: str) -> None:
    assert words(text) == slow_words(text)


@given(ANY_TEXT)
def test_nothing_but_white_space_is_left_out(text: str) -> None:
    assert "".join(words(text)) == "".join(text.split())


@given(st.lists(st.text(alphabet="aZ9_.,:/-'@日", min_size=1), max_size=5))
def test_white_space_parts_words(pieces: list[str]) -> None:
    assert words("\n ".join(pieces)) == [word for piece in pieces for word in words(piece)]


@pytest.mark.parametrize("piece", ["a!", "a:", "http://!", "-/", " /", "1,", "a'", "''", "a::", "日", "ी", "http:// "])
def test_a_megabyte_of_anything_takes_linear_time(piece: str) -> None:
    # quadratic time would be many minutes
    text = piece * 200_000
    assert sum(map(len, words(text))) == len(text) - text.count(" ")

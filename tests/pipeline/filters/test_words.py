from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.filters.words import words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (" \n\t\u3000", []),
        ("One, two.", ["One", ",", "two", "."]),
        ("os.path x==y me@site.org snake_case", ["os.path", "x==y", "me@site.org", "snake_case"]),
        ("well-known and/or a:b", ["well", "-", "known", "and", "/", "or", "a", ":", "b"]),
        ("1,000 12:30 1/n n/1 utf-8", ["1,000", "12:30", "1/n", "n/1", "utf-8"]),
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


@given(st.text() | st.text(alphabet="aZ9_.,:/-'\u2019@ \nhttps日\u0301"))
@example("http://")
def test_nothing_but_white_space_is_left_out(text: str) -> None:
    assert "".join(words(text)) == "".join(text.split())


@given(st.lists(st.text(alphabet="aZ9_.,:/-'@日", min_size=1), max_size=5))
def test_white_space_parts_words(pieces: list[str]) -> None:
    assert words("\n ".join(pieces)) == [word for piece in pieces for word in words(piece)]


@pytest.mark.parametrize("piece", ["a!", "a:", "http://!", "-/", " /", "1,", "a'", "''", "a::", "日", "ी", "http:// "])
def test_a_megabyte_of_anything_takes_linear_time(piece: str) -> None:
    # quadratic time would be an hour
    text = piece * 500_000
    assert sum(map(len, words(text))) == len(text) - text.count(" ")

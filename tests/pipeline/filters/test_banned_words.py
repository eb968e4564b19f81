from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.filter_config import BannedWordsConfig
from pipeline.filters.banned_words import rejection
from pipeline.filters.view import DocumentView


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    (tmp_path / "words.txt").write_text("# not nice\nfoo\nBar baz\nc'est ça\n禁止\n")
    return tmp_path / "words.txt"


@pytest.mark.parametrize(
    ("text", "is_dropped"),
    [
        ("a Foo.", True),
        ("food, buffoon", False),
        ("bar\n  BAZ", True),
        ("bar, baz", False),
        ("bar bazaar", False),
        ("C'est ça!", True),
        ("这是禁止的", True),
        ("止禁", False),
        ("", False),
    ],
)
def test_words_and_phrases_are_found_whole(listed: Path, text: str, is_dropped: bool) -> None:
    reason = rejection(DocumentView(text), BannedWordsConfig(type="banned_words", path=listed))
    assert reason == ("banned_words" if is_dropped else None)


def test_some_may_be_allowed(listed: Path) -> None:
    config = BannedWordsConfig(type="banned_words", path=listed, max_occurrences=2)
    assert rejection(DocumentView("foo and bar baz"), config) is None
    assert rejection(DocumentView("foo and foo and bar baz"), config) == "banned_words"

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.filter_config import UrlConfig
from pipeline.filters.url import rejection
from pipeline.filters.view import DocumentView


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("https://bad.example/a", "url_domain"),
        ("https://www.BAD.example:80/a", "url_domain"),
        ("bad.example/a", "url_domain"),
        ("http://user@bad.example", "url_domain"),
        ("bad.example/?u=http://x.example", "url_domain"),
        ("good.example/?u=http://bad.example", None),
        ("https://bad.example./a", "url_domain"),
        ("//bad.example/a", "url_domain"),
        (" https://bad.example/a", "url_domain"),
        ("https://notbad.example/a", None),
        ("https://example/bad.example", None),
        ("https://listed.example/", "url_domain"),
        ("https://good.example/cheap-Casino_games", "url_word"),
        ("https://good.example/casinos", None),
        ("corpus/a.jsonl:12", None),
        ("http://[::1", None),
        ("", None),
    ],
)
def test_domains_and_those_below_and_whole_words(tmp_path: Path, url: str, reason: str | None) -> None:
    (tmp_path / "domains.txt").write_text("# a comment\n\nlisted.example  # another\n")
    config = UrlConfig(
        type="url", domains=("bad.example",), domains_path=tmp_path / "domains.txt", words=("casino", "POKER")
    )
    assert rejection(DocumentView("text", url=url), config) == reason


def test_a_filter_that_asks_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="wanted domains, domains_path or words; there is nothing to drop"):
        UrlConfig(type="url")

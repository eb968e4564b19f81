"""Drops documents by where they come from: domains, and words in the URL."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Literal
from urllib.parse import urlsplit

from pipeline.filter_config import UrlConfig
from pipeline.filters.listing import read_list
from pipeline.filters.view import DocumentView

# urlsplit passes over white space and control characters at the start
_BEFORE_HOST = re.compile(r"[\x00-\x20]*(?:[a-z][a-z0-9+.-]*:)?//")


def rejection(view: DocumentView, config: UrlConfig) -> Literal["url_domain", "url_word"] | None:
    domains, words = wanted(config)
    url = view.url.lower()
    if domains:
        labels = _host(url).split(".")
        if any(".".join(labels[start:]) in domains for start in range(len(labels))):
            return "url_domain"
    if words and not words.isdisjoint(re.split(r"[^a-z0-9]+", url)):
        return "url_word"
    return None


def _host(url: str) -> str:
    """Without a scheme, what stands before the first slash is the host. Empty for a URL that is none."""
    try:
        # a host may end with the dot of the root of all names
        return (urlsplit(url if _BEFORE_HOST.match(url) else f"//{url}").hostname or "").rstrip(".")
    except ValueError:
        return ""


@lru_cache(maxsize=8)
def wanted(config: UrlConfig) -> tuple[frozenset[str], frozenset[str]]:
    domains = [*config.domains, *(read_list(config.domains_path) if config.domains_path else ())]
    return frozenset(domain.lower().strip(".") for domain in domains), frozenset(map(str.lower, config.words))

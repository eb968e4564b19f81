"""C4's cleaning: lines that are no sentences are removed, pages that are no prose dropped.

Raffel et al. 2020, arXiv:1910.10683, §2.2 "The Colossal Clean Crawled Corpus": 5 words a line, 3 sentences a page.
What the paper leaves out is as in the code that its authors published: citations such as `[1]`, lines with a word of
more than 1,000 characters, notices on policies. Page rules are asked of the lines that stay. The list of bad words is
`banned_words`, the language is `language`, and the removal of repeated spans of three sentences belongs to
deduplication.
"""

from __future__ import annotations

import re
from typing import Literal

from pipeline.filter_config import C4Config
from pipeline.filters.view import DocumentView, sentences_of_line

Reason = Literal["c4_lorem_ipsum", "c4_curly_bracket", "c4_too_few_sentences"]

_CITATION = re.compile(r"\[(?:\d*|edit|citation needed)\]")


def rejection(view: DocumentView, config: C4Config) -> Reason | None:
    """Leaves the lines that stay, each stripped, as the view's text, if the document is kept."""
    kept = []
    sentences = 0
    for raw_line in view.lines:
        line = raw_line.strip()
        if config.remove_citations and "[" in line:
            line = _CITATION.sub("", line).strip()
        if not _is_kept(line, config):
            continue
        lowered = line.lower()
        if config.reject_lorem_ipsum and "lorem ipsum" in lowered:
            return "c4_lorem_ipsum"
        if any(phrase in lowered for phrase in config.dropped_line_phrases):
            continue
        if config.reject_curly_brackets and "{" in line:
            return "c4_curly_bracket"
        kept.append(line)
        if sentences < config.min_sentences:
            sentences += len(sentences_of_line(line))
    if sentences < config.min_sentences:
        return "c4_too_few_sentences"
    view.text = "\n".join(kept)
    return None


def _is_kept(line: str, config: C4Config) -> bool:
    words = line.split()
    if len(words) < config.min_words_per_line or max(map(len, words), default=0) > config.max_word_characters:
        return False
    return not config.require_terminal_mark or (line.endswith(config.terminal_marks) and not line.endswith("..."))

"""What each document filter is told. `type` names the module in `pipeline/filters/` that asks.

A threshold says its side in its name; the value of the threshold itself passes. Defaults are the published ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipeline.source_config import Section

Fraction = Annotated[float, Field(ge=0, le=1)]


class LengthConfig(Section):
    """Bounds of a document's length, in characters, both included, without the white space around it."""

    type: Literal["length"]
    min_characters: int = Field(default=1, ge=1)
    max_characters: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.max_characters is not None and self.max_characters < self.min_characters:
            raise ValueError(
                f"max_characters={self.max_characters} is below min_characters={self.min_characters}; no text passes"
            )
        return self


class GopherQualityConfig(Section):
    """Gopher's quality filter (Rae et al. 2021, arXiv:2112.11446, Appendix A1.1)."""

    type: Literal["gopher_quality"]
    min_words: int = Field(default=50, ge=0)
    max_words: int = Field(default=100_000, ge=1)
    min_mean_word_length: float = Field(default=3, ge=0)
    max_mean_word_length: float = Field(default=10, ge=1)
    max_hashes_per_word: float = Field(default=0.1, ge=0)
    max_ellipses_per_word: float = Field(default=0.1, ge=0)
    max_bullet_line_fraction: Fraction = 0.9
    max_ellipsis_line_fraction: Fraction = 0.3
    min_alphabetic_word_fraction: Fraction = 0.8
    min_stop_words: int = Field(default=2, ge=0, description="different ones")
    stop_words: tuple[str, ...] = ("the", "be", "to", "of", "and", "that", "have", "with")


class GopherRepetitionConfig(Section):
    """Gopher's repetition filter (Rae et al. 2021, arXiv:2112.11446, Appendix A1.1, Table A1). N-grams by their n."""

    type: Literal["gopher_repetition"]
    max_duplicate_line_fraction: Fraction = 0.3
    max_duplicate_line_character_fraction: Fraction = 0.2
    max_duplicate_paragraph_fraction: Fraction = 0.3
    max_duplicate_paragraph_character_fraction: Fraction = 0.2
    max_top_ngram_character_fraction: dict[Annotated[int, Field(ge=1)], Fraction] = Field(
        default_factory=lambda: {2: 0.20, 3: 0.18, 4: 0.16}
    )
    max_duplicate_ngram_character_fraction: dict[Annotated[int, Field(ge=1)], Fraction] = Field(
        default_factory=lambda: {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
    )


class C4Config(Section):
    """C4's cleaning (Raffel et al. 2020, arXiv:1910.10683, §2.2). Removes lines; phrases are told without case.

    The paper's first version said 3 words and 5 sentences, and FineWeb was made with those.
    """

    type: Literal["c4"]
    min_words_per_line: int = Field(default=5, ge=0)
    max_word_characters: int = Field(default=1000, ge=1)
    min_sentences: int = Field(default=3, ge=0)
    require_terminal_mark: bool = True
    terminal_marks: tuple[Annotated[str, Field(min_length=1)], ...] = (".", "!", "?", '"')
    remove_citations: bool = True
    dropped_line_phrases: tuple[Annotated[str, Field(min_length=1, pattern="^[^A-Z]*$")], ...] = (
        "javascript",
        "terms of use",
        "privacy policy",
        "cookie policy",
        "uses cookies",
        "use of cookies",
        "use cookies",
    )
    reject_lorem_ipsum: bool = True
    reject_curly_brackets: bool = True


class FineWebConfig(Section):
    """FineWeb's own filters (Penedo et al. 2024, arXiv:2406.17557, §3.6), and the newlines of its published code.

    The paper drops text with at least 0.1 of its characters in duplicated lines; the published code has 0.01.
    """

    type: Literal["fineweb"]
    min_punctuated_line_fraction: Fraction = 0.12
    max_short_line_fraction: Fraction = 0.67
    short_line_characters: int = Field(default=30, ge=0, description="a line of so many is short")
    max_duplicate_line_character_fraction: Fraction = 0.1
    max_newlines_per_word: float = Field(default=0.3, ge=0)


class LanguageConfig(Section):
    """Keeps documents in one of `languages` (ISO 639-1 for the heuristic, else the model's own labels).

    `model_path` is a fastText model whose labels are `__label__en` and the like (extra `language`); `min_score` is the
    probability that it must give. Without a model the script and the stop words decide, and `min_score` is the share
    of words that must be stop words of the language.
    """

    type: Literal["language"]
    languages: tuple[Annotated[str, Field(min_length=1)], ...] = Field(min_length=1)
    model_path: Path | None = None
    min_score: Fraction | None = Field(default=None, description="None: 0.65 with a model, 0.08 without")


class CodeConfig(Section):
    """Source code that nobody wrote by hand, or nobody can read. Lengths are in characters.

    Line lengths and the alphanumeric share are the defaults of BigCode's published preprocessing of The Stack, which
    StarCoder's data had with exceptions by file type (Li et al. 2023, arXiv:2305.06161). A licence at the top is a
    block of comments with the word licence or copyright.
    """

    type: Literal["code"]
    remove_licence_header: bool = False
    reject_generated: bool = True
    max_line_characters: int = Field(default=1000, ge=1)
    max_mean_line_characters: float = Field(default=100, ge=1)
    min_alphanumeric_fraction: Fraction = 0.25


class PiiConfig(Section):
    """Replaces e-mail addresses and public IP addresses (private and reserved ones name nobody)."""

    type: Literal["pii"]
    email_replacement: str | None = Field(default="email@example.com", description="None: stay")
    ip_replacement: str | None = Field(default="192.0.2.1", description="None: stay; RFC 5737's documentation address")


class UnicodeConfig(Section):
    """Repairs text that was decoded wrongly (ftfy: `cafÃ©` to `café`), and composes characters (NFC), by choice."""

    type: Literal["unicode"]
    repair: bool = True
    normalization: Literal["NFC"] | None = None


class UrlConfig(Section):
    """Drops documents by their URL: a web archive's, or an id that is one (`id_field: url`) of any other source.

    A domain includes those below it. Words are told without case, in the whole URL, between anything but letters and
    digits.
    """

    type: Literal["url"]
    domains: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    domains_path: Path | None = Field(default=None, description="a text file, a domain a line; # begins a comment")
    words: tuple[Annotated[str, Field(min_length=1)], ...] = ()

    @model_validator(mode="after")
    def _asks_something(self) -> Self:
        if not self.domains and self.domains_path is None and not self.words:
            raise ValueError("wanted domains, domains_path or words; there is nothing to drop")
        return self


class BannedWordsConfig(Section):
    """Drops documents with too many words or phrases of a list, told without case, at the bounds of words."""

    type: Literal["banned_words"]
    path: Path = Field(description="a text file, a word or phrase a line; # begins a comment")
    max_occurrences: int = Field(default=0, ge=0)


FilterConfig = Annotated[
    LengthConfig
    | GopherQualityConfig
    | GopherRepetitionConfig
    | C4Config
    | FineWebConfig
    | LanguageConfig
    | CodeConfig
    | PiiConfig
    | UnicodeConfig
    | UrlConfig
    | BannedWordsConfig,
    Field(discriminator="type"),
]


def look_into_text(filters: Iterable[FilterConfig]) -> bool:
    """Whether any of them asks what a text says, and not only how long it is and where it came from."""
    return any(config.type not in ("length", "url") for config in filters)


def files_of(filters: Iterable[FilterConfig]) -> list[Path]:
    """The files that filters read, in the order of the filters: every field that is a path."""
    values = [value for config in filters for _, value in config]
    return [value for value in values if isinstance(value, Path)]

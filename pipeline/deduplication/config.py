"""What is a duplicate and what is contaminated. Every section is optional; a section that is absent is off."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from pipeline.source_config import Section, SourceConfig


class ExactConfig(Section):
    """`exact: {}` drops documents equal to an earlier one, up to white space, control characters and NFC."""


class MinhashConfig(Section):
    """Drops documents that resemble an earlier one, with FineWeb's parameters (arXiv:2406.17557, §3.4).

    Two documents are linked when all `rows_per_band` MinHashes of one of `bands` bands are equal, which for sets of
    word n-grams of Jaccard similarity s happens with probability 1 - (1 - s^rows)^bands: 0.77 at 0.75, 0.92 at 0.8.
    """

    bands: int = Field(default=14, ge=1, le=100)
    rows_per_band: int = Field(default=8, ge=1, le=100)
    ngram_words: int = Field(default=5, ge=1, le=100)
    seed: int = Field(default=0, ge=0)


class ParagraphsConfig(Section):
    """Removes paragraphs that an earlier kept document, or an earlier place of the same one, has.

    Paragraphs are lines, or what blank lines part. Shorter ones (headings, closing braces) are left alone.
    """

    separator: Literal["line", "blank_line"] = "line"
    min_characters: int = Field(default=100, ge=1)


class DecontaminationConfig(Section):
    """Drops documents that share `ngram_words` words in a row with an evaluation set (GPT-3, arXiv:2005.14165, §C).

    `evaluations` are sources like those of the corpus: `text_field` or `template` say what of a record is looked for.
    """

    evaluations: tuple[SourceConfig, ...] = Field(min_length=1)
    ngram_words: int = Field(default=13, ge=1, le=100)

    @model_validator(mode="after")
    def _evaluations_are_named(self) -> Self:
        names = [evaluation.name for evaluation in self.evaluations]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two evaluations are named {twice[0]!r}; give each a name of its own")
        return self


class DeduplicationConfig(Section):
    """The first document in the order of sources, files and records stays; what follows it is dropped.

    Documents are compared as the filters leave them. What paragraphs leave of a document is not filtered again.
    """

    exact: ExactConfig | None = None
    minhash: MinhashConfig | None = None
    paragraphs: ParagraphsConfig | None = None
    decontamination: DecontaminationConfig | None = None

    @property
    def is_on(self) -> bool:
        return any((self.exact, self.minhash, self.paragraphs, self.decontamination))

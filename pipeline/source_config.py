"""What a source is told: where its records lie, which of their fields are read, and which records are wanted.

Secrets are never fields: object stores take theirs from the environment, as their own tools do.
"""

from __future__ import annotations

import string
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Section(BaseModel):
    """A part of a config: frozen, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(Section):
    """What every source has."""

    name: str = Field(min_length=1)


class ConditionConfig(Section):
    """A record is kept only if `field` is one of some values, or a number within bounds, both included.

    Values are compared as text, so that `3` is the 3 of JSON and of CSV. A record without the field is dropped.
    """

    field: str = Field(min_length=1)
    one_of: tuple[str | int | float | bool, ...] | None = Field(default=None, min_length=1)
    min_value: float | None = Field(default=None, allow_inf_nan=False)
    max_value: float | None = Field(default=None, allow_inf_nan=False)

    @model_validator(mode="after")
    def _asks_something(self) -> Self:
        bounded = self.min_value is not None or self.max_value is not None
        if bounded == (self.one_of is not None):
            raise ValueError("wanted either one_of or a bound (min_value, max_value), not both, not none")
        if self.min_value is not None and self.max_value is not None and self.max_value < self.min_value:
            raise ValueError(f"max_value={self.max_value} is below min_value={self.min_value}; no record passes")
        return self


class RecordFields(Source):
    """The fields of a structured record that are read; `metadata.language` is the field of a field.

    The text is `text_field`, or `template`, which joins several: `"{title}\\n\\n{body}"` (`{{` is a brace). Every field
    of a template must be text or a number. `id_field` names the document. `keep_if` are conditions, all to be met.
    """

    text_field: str = Field(default="text", min_length=1)
    template: str | None = None
    id_field: str | None = Field(default=None, min_length=1)
    keep_if: tuple[ConditionConfig, ...] = ()

    @model_validator(mode="after")
    def _template_is_one(self) -> Self:
        if self.template is None:
            return self
        if self.text_field != "text":  # its default, which a resolved config holds too
            raise ValueError("wanted either text_field or template, not both")
        try:
            parts = list(string.Formatter().parse(self.template))
        except ValueError as error:
            raise ValueError(f"template={self.template!r}: {error}; write a brace as {{{{ or }}}}") from None
        names = [name for _, name, _, _ in parts if name is not None]
        if not names or not all(names) or any(spec or conversion for _, _, spec, conversion in parts):
            raise ValueError(f"template={self.template!r}: wanted fields such as {{title}}, without a format")
        return self


class Files(Source):
    """Paths, URLs of fsspec (`s3://bucket/…`) and globs of both (`**` for any depth), in the order of sorted paths."""

    files: tuple[str, ...] = Field(min_length=1)


class JsonlConfig(RecordFields, Files):
    """JSON lines."""

    type: Literal["jsonl"]


class JsonArrayConfig(RecordFields, Files):
    """Files that are one JSON array of objects each."""

    type: Literal["json_array"]


class CsvConfig(RecordFields, Files):
    """Comma- or tab-separated values (RFC 4180). `column_names` is for files that have no header row."""

    type: Literal["csv"]
    delimiter: str | None = Field(
        default=None, min_length=1, max_length=1, description="None: a tab in .tsv files, else a comma"
    )
    column_names: tuple[str, ...] | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _columns_are_told_apart(self) -> Self:
        names = self.column_names or ()
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"column_names has {twice[0]!r} twice; give each column a name of its own")
        return self


class ParquetConfig(RecordFields, Files):
    """Parquet files, read by row groups."""

    type: Literal["parquet"]


class ArrowConfig(RecordFields, Files):
    """Arrow IPC files and streams, read by record batches."""

    type: Literal["arrow"]


class TextConfig(Files):
    """Text, Markdown and other text files, each one document."""

    type: Literal["text"]


class WarcConfig(Files):
    """Web archives: the main text of HTML responses (trafilatura), and the text of WET's conversion records."""

    type: Literal["warc"]


class SourceCode(Source):
    """Files of one repository.

    `special_tokens`: documents begin with the name of the repository and the path, as StarCoder 2 was trained
    (arXiv:2402.19173): `<repo_name>NAME<file_sep>PATH`, a line end, the file. The name is
    `repository`, or that of the root's folder.
    """

    root: str
    special_tokens: bool = False
    repository: str | None = None


class SourceTreeConfig(SourceCode):
    """A tree of source code, each file one document. `root: python:stdlib` is the running interpreter's library."""

    type: Literal["source_tree"]
    include: tuple[str, ...] = Field(default=("**/*.py",), min_length=1)
    exclude: tuple[str, ...] = ()


class GitConfig(SourceCode):
    """A checkout, each file that git does not ignore one document; `languages` as in `sources/languages.py`."""

    type: Literal["git"]
    languages: tuple[str, ...] | None = Field(default=None, min_length=1)
    include: tuple[str, ...] = Field(default=("**",), min_length=1)
    exclude: tuple[str, ...] = ()


class HuggingFaceConfig(RecordFields):
    """A dataset of the Hugging Face hub or a local folder of its kind.

    `loader: load_dataset` downloads and prepares `path` (`config_name`, `split`, `revision`) in the cache of
    `datasets`; `loader: load_from_disk` opens what `save_to_disk` wrote.
    """

    type: Literal["huggingface"]
    path: str
    loader: Literal["load_dataset", "load_from_disk"] = "load_dataset"
    config_name: str | None = None
    split: str = "train"
    revision: str | None = None

    @model_validator(mode="after")
    def _disk_has_one_split(self) -> Self:
        if self.loader == "load_from_disk" and (self.config_name or self.revision):
            raise ValueError("load_from_disk takes a path only; remove config_name and revision")
        return self


class HuggingFaceStreamConfig(RecordFields):
    """A dataset of the Hugging Face hub or a local folder of its kind, read as a stream, without a cache."""

    type: Literal["huggingface_stream"]
    path: str
    config_name: str | None = None
    split: str = "train"
    revision: str | None = None


SourceConfig = Annotated[
    JsonlConfig
    | JsonArrayConfig
    | CsvConfig
    | ParquetConfig
    | ArrowConfig
    | TextConfig
    | WarcConfig
    | SourceTreeConfig
    | GitConfig
    | HuggingFaceConfig
    | HuggingFaceStreamConfig,
    Field(discriminator="type"),
]

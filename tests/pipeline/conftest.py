"""Small real corpora, a small real tokenizer, and configs that put them together."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import PipelineConfig
from pipeline.tokenizer.train import train_tokenizer

# runs of white space among them, so that the tokenizer has tokens that hold several
WORDS = (
    "\n    ",
    "   \n",
    "def",
    "return",
    "the",
    "shard",
    "naïve",
    "東京",
    "12",
    "3.14",
    "\n",
    "\t",
    "don't",
    "🙂",
    "<|endoftext|>",
    "x=y",
)


def random_texts(count: int, *, seed: int, words: int = 60) -> list[str]:
    """Texts with digits, line ends, accents, emoji and the literal of a special token."""
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, words))) + f" {seed}:{index}" for index in range(count)]


def write_jsonl(path: Path, texts: Sequence[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


@pytest.fixture(scope="session", autouse=True)
def cache_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for what is remembered between runs, in the place of the user's."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture
def stop_before_renames() -> Callable[..., None]:
    """`stop_before_renames(patch, after=3, without=("status.json", "units"))`: KeyboardInterrupt in the place of every
    rename of a partial file but the first three. Shards do not count, nor does what is named, or is in a folder so."""

    def stop(patch: pytest.MonkeyPatch, *, after: int, without: Sequence[str]) -> None:
        left = iter(range(after))
        replace = Path.replace

        def replace_or_stop(path: Path, target: Path) -> Path:
            names = {target.name, target.parent.name, f"{target.parent.name}/{target.name}"}
            counts = path.suffix == ".partial" and target.suffix != ".arrow" and names.isdisjoint(without)
            if counts and next(left, None) is None:
                raise KeyboardInterrupt
            return replace(path, target)

        patch.setattr(Path, "replace", replace_or_stop)

    return stop


@pytest.fixture(scope="session")
def make_texts() -> Callable[..., list[str]]:
    """`make_texts(count, seed=…)`."""
    return random_texts


@pytest.fixture(scope="session")
def make_jsonl() -> Callable[[Path, Sequence[str]], Path]:
    """`make_jsonl(path, texts)`."""
    return write_jsonl


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of 300 entries, trained on random texts."""
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_bytes(train_tokenizer(random_texts(200, seed=1), vocab_size=300))
    return path


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Three JSONL files of 40 documents each."""
    for part in range(3):
        write_jsonl(tmp_path / "corpus" / f"{part}.jsonl", random_texts(40, seed=part))
    return tmp_path / "corpus"


@pytest.fixture
def make_config(tmp_path: Path, tokenizer_file: Path) -> Callable[..., PipelineConfig]:
    """A config of one worker that reads `corpus/*.jsonl`, with any field replaced."""

    def make(**fields: Any) -> PipelineConfig:
        default: dict[str, Any] = {
            "name": "test",
            "output_dir": tmp_path / "dataset",
            "sources": [{"name": "corpus", "type": "jsonl", "files": [str(tmp_path / "corpus" / "*.jsonl")]}],
            "tokenizer": {"path": tokenizer_file},
            "validation_fraction": 0.2,
            "workers": 1,
        }
        return PipelineConfig.model_validate(default | fields)

    return make

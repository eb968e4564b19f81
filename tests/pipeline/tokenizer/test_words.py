from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from pipeline.tokenizer import words
from pipeline.tokenizer.engine import TokenizersEngine
from pipeline.tokenizer.words import WordEngine

# whatever a cut could split wrongly: contractions, marks, letters with and without accents, spaces of every kind
PARTS = st.sampled_from(
    ["'s", "'", "don't", "we'll", "x", "Z", "e\u0301", "é", "東", "1", "²", "_", "(", '"', "-", "\x1c", "\x85",
     "\u3000", " ", "  ", "\n", "\n\n    ", "\t", "\r\n", "def", "x(", "<|endoftext|>", "👩\u200d👩", "\x00", "\u2028"]
)  # fmt: skip
TEXTS = st.one_of(st.text(max_size=60), st.lists(PARTS, max_size=40).map("".join))


@pytest.fixture(scope="module")
def reference(tokenizer_file: Path) -> TokenizersEngine:
    return TokenizersEngine(Tokenizer.from_file(str(tokenizer_file)))


@pytest.fixture(scope="module")
def engine(reference: TokenizersEngine) -> WordEngine:
    return WordEngine(reference)


@settings(max_examples=500, deadline=None)
@given(texts=st.lists(TEXTS, max_size=5))
def test_ids_are_those_of_each_text_encoded_whole(
    engine: WordEngine, reference: TokenizersEngine, texts: list[str]
) -> None:
    got, expected = engine.encode(texts), reference.encode(texts)
    assert got.ids.tolist() == expected.ids.tolist()
    assert got.offsets.tolist() == expected.offsets.tolist()


def test_texts_are_cut_between_words_and_at_marks_but_not_at_apostrophes() -> None:
    assert words._CUT.split("self.run(x) don't\n  a1 é.\tb") == [
        "self", ".", "run", "(", "x", ")", " don't", "\n  a1", " é.\tb",
    ]  # fmt: skip


def test_a_word_is_asked_about_once(reference: TokenizersEngine) -> None:
    asked: list[str] = []

    class Asked(TokenizersEngine):
        def __init__(self) -> None:
            self.version = "1"

        def encode(self, texts):  # type: ignore[no-untyped-def]
            asked.extend(texts)
            return reference.encode(texts)

    engine = WordEngine(Asked())
    engine.encode(["the shard the shard", "the"])
    engine.encode([" shard"])
    assert sorted(asked) == [" shard", " the", "the"]


def test_long_words_and_too_many_are_not_kept(reference: TokenizersEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "MAX_WORDS", 3)
    engine = WordEngine(reference)
    engine.encode(["x" * (words.MAX_WORD_CHARACTERS + 1), "a b"])
    assert set(engine._ids) == {"a", " b"}
    engine.encode(["c d"])
    assert engine._ids == {}
    assert engine.encode(["a b"]).ids.tolist() == reference.encode(["a b"]).ids.tolist()

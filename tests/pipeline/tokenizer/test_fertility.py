from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from pipeline.tokenizer import fertility as fertility_module
from pipeline.tokenizer.fertility import Fertility, load_tokenizer, measure
from pipeline.tokenizer.train import TokenizerError


def words_and_letters() -> dict[str, Tokenizer]:
    words = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    letters = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    letters.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return {"words": words, "letters": letters}


def test_tokens_are_counted_a_byte_and_a_word() -> None:
    # 3 words, 13 characters, 14 bytes
    result = measure(["naïve one", "\n two"], words_and_letters())
    assert result == Fertility(documents=2, text_bytes=15, words=3, tokens={"words": 3, "letters": 14})
    assert result.tokens_per_word("words") == 1
    assert result.tokens_per_byte("letters") == pytest.approx(14 / 15)


def test_batches_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["one two", "three", "", "four five six"]
    whole = measure(texts, words_and_letters())
    monkeypatch.setattr(fertility_module, "_BATCH_CHARACTERS", 5)
    assert measure(texts, words_and_letters()) == whole


def test_no_text_is_no_fertility() -> None:
    assert measure([], words_and_letters()).tokens_per_byte("words") == 0


def test_neither_added_tokens_nor_padding_count(tokenizer_file: Path, tmp_path: Path) -> None:
    plain = load_tokenizer(tokenizer_file, option="--tokenizer")
    padded = Tokenizer.from_file(str(tokenizer_file))
    padded.enable_padding(length=500)
    padded.enable_truncation(2)
    padded.save(str(tmp_path / "padded.json"))
    texts = ["the <|endoftext|> shard", "return"]
    both = measure(texts, {"plain": plain, "padded": load_tokenizer(tmp_path / "padded.json", option="--reference")})
    assert both.tokens["plain"] == both.tokens["padded"]
    # a literal of a special token is text: more than one token
    assert measure(["<|endoftext|>"], {"plain": plain}).tokens["plain"] > 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"^--reference=.*t.json: No such file or directory; name a tokenizer.json$"),
        (b"\xff", r"^--reference=.*t.json: not UTF-8 text; name a tokenizer.json$"),
        (b"{}", r"^--reference=.*t.json is not a tokenizer.json of the tokenizers library: [^\n]+$"),
    ],
)
def test_what_is_no_tokenizer_is_one_line(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "t.json").write_bytes(content)
    with pytest.raises(TokenizerError, match=message):
        load_tokenizer(tmp_path / "t.json", option="--reference")


def test_a_text_that_cannot_be_encoded_names_the_tokenizer() -> None:
    words = Tokenizer(models.WordLevel({"one": 0}, unk_token="[UNK]"))
    with pytest.raises(TokenizerError, match=r"^tokenizer words cannot encode this corpus: [^\n]+; give it an unknown"):
        measure(["two"], {"words": words})

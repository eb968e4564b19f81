"""A byte-level BPE like SmolLM2's: digits one by one, GPT-2's splitting, 17 special tokens at ids 0–16.

One difference, on purpose: all 256 bytes have a token, where SmolLM2's vocabulary lacks 21 of them and drops those
bytes silently. Equal texts give an equal `tokenizer.json`, byte for byte, whatever their order and the number of
threads: words are counted, and of pairs equally frequent the one of the smaller ids is merged first.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from pipeline.document import PipelineError
from pipeline.tokenizer.special_tokens import SPECIAL_TOKENS


class TokenizerError(PipelineError):
    """A tokenizer that cannot be read, or cannot make this dataset."""


def train_tokenizer(texts: Iterable[str], *, vocab_size: int) -> bytes:
    """The contents of a `tokenizer.json` of exactly `vocab_size` entries. Texts are read once, as a stream.

    Raises TokenizerError if the texts have too little variety for so many entries.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    size = tokenizer.get_vocab_size(with_added_tokens=True)
    if size < vocab_size:
        raise TokenizerError(
            f"the sample gives only {size:,} tokenizer entries, wanted {vocab_size:,}; "
            f"give more text (tokenizer.train.sample_bytes, sources) or set tokenizer.train.vocab_size={size}"
        )
    content: str = tokenizer.to_str(pretty=True)
    return content.encode()

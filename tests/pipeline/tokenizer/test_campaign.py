"""All ids of 100 MB of mixed text, and a fuzz by the clock: `make test-encoding`, `make fuzz-encoding`.

The text is what this machine holds: sources and documents of Python's packages, and the message catalogues of Debian's
programs in all their languages. Where that is less than 100 MB, words of random letters of every block of Unicode make
up for it. Both tests use a tokenizer of 49,152 entries trained on a part of it, so that its merges are of every script;
and the same without tokens for the 21 bytes that SmolLM2's vocabulary lacks.
"""

from __future__ import annotations

import gettext
import itertools
import json
import os
import random
import sys
import sysconfig
import time
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pytest
from tokenizers import Tokenizer, pre_tokenizers

from pipeline.tokenizer import encode
from pipeline.tokenizer.encode import Encoder
from pipeline.tokenizer.engine import FlatIds, TokenizersEngine
from pipeline.tokenizer.parity import hard_cases
from pipeline.tokenizer.special_tokens import EOS_TOKEN, SPECIAL_TOKENS
from pipeline.tokenizer.train import train_tokenizer

pytestmark = [pytest.mark.campaign, pytest.mark.timeout(0)]

MIXED_BYTES = 105_000_000
CATALOGUES = Path("/usr/share/locale")
FUZZ_SECONDS = float(os.environ.get("FUZZ_SECONDS", "3600"))
FUZZ_SEED = int(os.environ.get("FUZZ_SEED", "0"))
SMOLLM2_LACKS = bytes([0x04, 0x06, 0x13, 0x14, 0x16, 0x1D, 0xC0, 0xC1, 0xF1, 0xF2, *range(0xF5, 0x100)])
MAX_SHOWN = 20


def library_texts() -> Iterator[str]:
    """Sources and documents of the standard library and of the installed packages, in random order."""
    folders = {sysconfig.get_path("stdlib"), *(path for path in sys.path if path.endswith("site-packages"))}
    files = {file for folder in folders for file in Path(folder).rglob("*") if file.suffix in (".py", ".md", ".txt")}
    for file in random.Random(0).sample(sorted(files), len(files)):
        yield file.read_bytes().decode(errors="replace")


def catalogue_texts() -> Iterator[str]:
    """A document for each catalogue of translated messages."""
    files = sorted(CATALOGUES.rglob("*.mo"))
    for file in random.Random(0).sample(files, len(files)):
        try:
            catalogue = gettext.GNUTranslations(file.open("rb"))
        except (OSError, ValueError, LookupError, SyntaxError):  # of a header that gettext cannot read
            continue
        yield "\n\n".join(text for text in catalogue._catalog.values() if text)  # type: ignore[attr-defined]


def block_texts() -> Iterator[str]:
    """Words of random letters, a block of Unicode a document."""
    draw = random.Random(0)
    while True:
        start = draw.randrange(0x80, 0x33480)
        letters = [chr(point) for point in range(start, start + 0x80) if chr(point).isalnum()]
        if letters:
            yield " ".join("".join(draw.choices(letters, k=draw.randint(1, 9))) for _ in range(2000))


def mixed_texts(size_bytes: int) -> Iterator[str]:
    """Half catalogues, as far as there are any; a tenth random words; the rest from the library."""
    for texts, share in ((catalogue_texts(), 0.5), (block_texts(), 0.1), (library_texts(), 1), (block_texts(), 1)):
        left = min(size_bytes, int(share * MIXED_BYTES))
        size_bytes -= left
        for text in texts:
            yield text
            left -= len(text.encode())
            if left <= 0:
                break
        size_bytes += max(0, left)


@pytest.fixture(scope="module")
def content() -> bytes:
    # every 10th document: training on all takes minutes
    return train_tokenizer(itertools.islice(mixed_texts(MIXED_BYTES), 0, None, 10), vocab_size=49_152)


@pytest.fixture(scope="module")
def lacking(content: bytes) -> bytes:
    """The same tokenizer without the entries that hold one of the 21 bytes."""
    tree = json.loads(content)
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spelled = sorted(set(pre_tokenizers.ByteLevel.alphabet()) - {chr(code) for code in printable})
    others = dict(zip((byte for byte in range(256) if byte not in printable), spelled, strict=True))
    gone = {others.get(byte, chr(byte)) for byte in SMOLLM2_LACKS}
    tree["model"]["vocab"] = {name: id for name, id in tree["model"]["vocab"].items() if not gone & set(name)}
    tree["model"]["merges"] = [pair for pair in tree["model"]["merges"] if not gone & set("".join(pair))]
    return json.dumps(tree).encode()


def encoder_of(content: bytes, engine: str) -> Encoder:
    encoder = Encoder(content, eos_token=EOS_TOKEN)
    encoder.use(engine)
    return encoder


def batches(texts: Iterable[str], *, characters: int) -> Iterator[list[str]]:
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if sum(map(len, batch)) >= characters:
            yield batch
            batch = []
    if batch:
        yield batch


def different(encoder: Encoder, reference: TokenizersEngine, texts: Sequence[str]) -> list[str]:
    """The texts whose ids are not those of the library, which is given each document whole."""
    expected: FlatIds = reference.encode(texts)
    got = encoder.encode(texts)
    return [
        text
        for row, text in enumerate(texts)
        if got[row][:-1].tobytes() != expected.row(row).tobytes() or got[row][-1] != encoder.record.eos_token_id
    ]


@pytest.mark.parametrize(
    ("vocabulary", "engine"), [("content", "splintr"), ("content", "tokenizers"), ("lacking", "splintr")]
)
def test_all_ids_of_100_mb_of_mixed_text_equal_the_library_s(
    vocabulary: str, engine: str, request: pytest.FixtureRequest
) -> None:
    made: bytes = request.getfixturevalue(vocabulary)
    encoder = encoder_of(made, engine)
    reference = TokenizersEngine(Tokenizer.from_str(made.decode()))
    documents = size_bytes = 0
    scripts: set[str] = set()
    for batch in batches(mixed_texts(MIXED_BYTES), characters=1 << 20):
        assert [ascii(text[:300]) for text in different(encoder, reference, batch)] == []
        documents += len(batch)
        size_bytes += sum(len(text.encode()) for text in batch)
        letters = {letter for text in batch for letter in text[len(text) // 2 :][:200] if letter.isalpha()}
        scripts.update(unicodedata.name(letter, "?").split()[0] for letter in letters)
    record = encoder.unit_record()
    print(f"\n{size_bytes:,} bytes, {documents:,} documents, {len(scripts)} kinds of letters; {record.engine}: equal; "
          f"{record.pieces:,} pieces, {record.pieces_by_reference:,} by the guard")  # fmt: skip
    assert size_bytes >= 100_000_000


FRAGMENTS = [case for case in hard_cases(SPECIAL_TOKENS, long_characters=300) if len(case) < 400]


def random_character(draw: random.Random, *, limit: int = 0x110000) -> str:
    point = draw.randrange(limit)
    return chr(point) if not 0xD800 <= point < 0xE000 else "\ufffd"


def random_string(draw: random.Random, corpus: Sequence[str]) -> str:
    """Of one of eight kinds; see each."""
    match draw.randrange(8):
        case 0:  # all of Unicode
            return "".join(random_character(draw) for _ in range(draw.randint(1, 60)))
        case 1:  # the planes in which there are characters
            return "".join(random_character(draw, limit=0x3400) for _ in range(draw.randint(1, 60)))
        case 2:  # one block, with spaces
            start = draw.randrange(0, 0x32000, 0x80)
            letters = [chr(p) for p in range(start, start + 0x80) if not 0xD800 <= p < 0xE000] or ["x"]
            return "".join(draw.choices([*letters, " ", "\n"], k=draw.randint(1, 80)))
        case 3:  # what has been hard before, joined
            return "".join(draw.choices(FRAGMENTS, k=draw.randint(1, 8)))
        case 4:  # control characters and spaces of every kind among letters
            spaces = (
                "\0\x04\x06\x13\x1c\x1d\x1e\x1f\x7f\x85\xa0\u1680\u2003\u2028\u2029\u200b\u3000\ufeff\t\n\v\f\r  '1a"
            )
            return "".join(draw.choices(spaces, k=draw.randint(1, 60)))
        case 5:  # a run
            return random_character(draw, limit=draw.choice([0x80, 0x3400, 0x110000])) * draw.randint(1, 2000)
        case 6:  # bytes that are mostly no text
            return draw.randbytes(draw.randint(1, 80)).decode(errors=draw.choice(["replace", "ignore"]))
        case _:  # real text, damaged
            text = draw.choice(corpus)
            start = draw.randrange(max(1, len(text)))
            letters = list(text[start : start + draw.randint(1, 400)])
            for _ in range(draw.randint(0, 8)):
                letters[draw.randrange(len(letters)) : draw.randrange(len(letters) + 1)] = [random_character(draw)]
                letters = letters or ["x"]
            form = draw.choice(["NFC", "NFD", "NFKC", "NFKD"])
            return draw.choice([str.lower, str.upper, str.title, lambda t: unicodedata.normalize(form, t)])(
                "".join(letters)
            )


def test_a_fuzz_by_the_clock_finds_no_difference(
    content: bytes, lacking: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = random.Random(FUZZ_SEED)
    corpus = [text for text in itertools.islice(mixed_texts(MIXED_BYTES), 0, None, 20) if text]
    pairs = [
        (encoder_of(made, engine), TokenizersEngine(Tokenizer.from_str(made.decode())))
        for made in (content, lacking)
        for engine in ("splintr", "tokenizers")
    ]
    started = told = time.monotonic()
    strings = characters = 0
    found: list[str] = []
    while time.monotonic() - started < FUZZ_SECONDS and len(found) < MAX_SHOWN:
        # short pieces too, so that texts are cut everywhere
        monkeypatch.setattr(encode, "PIECE_CHARACTERS", draw.choice([3, 50, 1 << 17]))
        batch = [random_string(draw, corpus) for _ in range(1000)]
        for encoder, reference in pairs:
            found += [ascii(text) for text in different(encoder, reference, batch)]
        strings += len(batch)
        characters += sum(map(len, batch))
        if time.monotonic() - told > 60:
            told = time.monotonic()
            print(f"{told - started:,.0f} s: {strings:,} strings, {characters:,} characters", flush=True)
    guarded = sum(encoder.unit_record().pieces_by_reference for encoder, _ in pairs)
    print(f"\nseed {FUZZ_SEED}, {time.monotonic() - started:,.0f} s: {strings:,} strings of {characters:,} characters, "
          f"each with both vocabularies and engines; pieces that the guard stopped: {guarded:,}")  # fmt: skip
    assert found == []

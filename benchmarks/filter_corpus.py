"""Real documents of several kinds from the machine that this runs on, and made-up spam, for `filtering.py`.

Manual pages, package documentation, change logs, HTML turned into text, the standard library's sources: whatever of it
is there. What is made of them is the same for the same machine and seed.
"""

from __future__ import annotations

import bz2
import gzip
import os
import random
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

MAX_CHARACTERS = 20_000
MIN_CHARACTERS = 200


def documents(count: int, *, seed: int) -> list[tuple[str, str]]:
    """About `count` pairs of a kind (manual, rst, spam, …) and a text, in random order, no text twice."""
    rng = random.Random(seed)
    found = {kind: sorted(files) for kind, files in _files_by_kind().items()}
    texts: list[tuple[str, str]] = []
    for kind, files in found.items():
        rng.shuffle(files)
        wanted = count // (len(found) + 1)
        with ThreadPoolExecutor(2) as pool:
            # two at a time where `man` is waited for; in two threads lxml, which trafilatura parses with, ended in a
            # corrupted heap once
            read = pool.map if kind == "manual" else map
            readable = (text for text in read(_read, files[: wanted * 2]) if len(text) >= MIN_CHARACTERS)
            texts += [(kind, _excerpt(text, rng)) for text, _ in zip(readable, range(wanted), strict=False)]
    sentences = [
        sentence
        for _, text in texts
        for sentence in re.findall(r"[A-Z][^.!?\n]{20,200}[.!?]", text)[:20]
        if sentence.isascii()
    ]
    texts += [("spam", _spam(rng, sentences)) for _ in range(count - len(texts))]
    rng.shuffle(texts)
    return list({text: (kind, text) for kind, text in texts}.values())


def _files_by_kind() -> dict[str, list[Path]]:
    stdlib = Path(sysconfig.get_path("stdlib"))
    trees = {
        "manual": (Path("/usr/share/man"), ("man*/*.gz",)),
        "changes": (Path("/usr/share/doc"), ("*/change*.gz", "*/NEWS*.gz", "*/README*.gz")),
        "text": (Path("/usr/share"), ("**/*.rst", "**/*.md", "doc/**/*.txt", "doc/**/README*")),
        "source": (stdlib, ("*.py", "[a-su-z]*/**/*.py")),
        "package": (stdlib / "site-packages", ("**/*.rst", "**/*.md", "**/METADATA")),
        "html": (Path("/"), ("usr/share/doc/**/*.html", "usr/lib/node_modules/**/*.html")),
        "book": (
            Path.home(),
            (".rustup/toolchains/stable*/share/doc/rust/html/[beu]*/**/*.html",),
        ),
    }
    kinds = {
        kind: [path for pattern in patterns for path in root.glob(pattern) if path.is_file() and not path.is_symlink()]
        for kind, (root, patterns) in trees.items()
    }
    return {kind: files for kind, files in kinds.items() if files}


def _read(path: Path) -> str:
    """Empty where nothing can be made of the file."""
    if path.stat().st_size > 2_000_000:
        return ""
    if path.parent.name.startswith("man"):
        return _manual_page(path)
    content = path.read_bytes()
    content = gzip.decompress(content) if path.suffix == ".gz" else content
    content = bz2.decompress(content) if path.suffix == ".bz2" else content
    text = content.decode("utf-8", errors="ignore").replace("\0", "")
    return _text_of_html(text) if path.suffix == ".html" else text


def _manual_page(path: Path) -> str:
    """Some with their paragraphs on one line, as web text has them; the others wrapped."""
    if shutil.which("man") is None:
        return gzip.decompress(path.read_bytes()).decode("utf-8", errors="ignore")
    width = "80" if len(path.name) % 3 == 0 else "5000"
    environment = os.environ | {"MANWIDTH": width, "LC_ALL": "C.UTF-8", "MAN_KEEP_FORMATTING": ""}
    done = subprocess.run(["man", "--local-file", str(path)], env=environment, capture_output=True, text=True)
    text = re.sub(r".\x08", "", done.stdout)
    return re.sub(r"^ +| {3,}", "", text, flags=re.MULTILINE)


def _text_of_html(html: str) -> str:
    try:
        import trafilatura
    except ImportError:
        return re.sub(r"<script.*?</script>|<style.*?</style>|<[^>]*>", " ", html, flags=re.DOTALL)
    return trafilatura.extract(html) or ""


def _excerpt(text: str, rng: random.Random) -> str:
    """From its start or its middle, of a length that differs."""
    length = rng.choice((500, 2_000, 8_000, MAX_CHARACTERS))
    start = 0 if rng.random() < 0.6 else rng.randrange(max(len(text) - length, 1))
    return text[start : start + length].strip()


def _spam(rng: random.Random, sentences: list[str]) -> str:
    """Honest sentences with what the rules look for, in amounts now above, now below a threshold."""
    good = [rng.choice(sentences) for _ in range(rng.randrange(3, 40))]
    lines = list(_lines(good, rng))
    share = rng.random() ** 2
    bad = {
        "repeated": [rng.choice(good)] * round(len(lines) * share),
        "menu": [
            rng.choice(("Home", "About us", "Contact", "Log in", "Next page »")) for _ in range(rng.randrange(40))
        ],
        "bullets": [f"{rng.choice('•-*')} {sentence}" for sentence in good[: round(len(good) * share * 2)]],
        "ellipsis": [sentence.rstrip(".") + "..." for sentence in good[: round(len(good) * share)]],
        "hashes": [" ".join("#" + word for word in good[0].split()[: round(10 * share)])] * 3,
        "legal": [rng.choice(("Read our privacy policy.", "This site uses cookies.", "Please enable JavaScript."))],
        "lorem": ["Lorem ipsum dolor sit amet, consectetur adipiscing elit."] * (rng.random() < 0.3),
        "code": ["function go() { return 1; }"] * (rng.random() < 0.3),
        "numbers": [" ".join(str(rng.randrange(10**6)) for _ in range(12)) for _ in range(round(20 * share))],
        "keywords": [" ".join(rng.choices(("cheap", "flights", "hotel", "deal", "best"), k=round(60 * share)))],
        "phrase": [f"{sentence} Click here to buy the best shoes now." for sentence in good[: round(40 * share)]],
    }
    lines += [line for kind in rng.sample(sorted(bad), k=rng.randrange(0, 4)) for line in bad[kind]]
    rng.shuffle(lines)
    return rng.choice(("\n", "\n", "\n\n")).join(line for line in lines if line)


def _lines(sentences: list[str], rng: random.Random) -> Iterator[str]:
    """One to four sentences a line."""
    at = 0
    while at < len(sentences):
        size = rng.randrange(1, 5)
        yield " ".join(sentences[at : at + size])
        at += size

"""Files of a dataset in an object store, by fsspec: `s3://`, `gs://`, `hf://`, `https://`, `memory://` …

Credentials and endpoints come from the environment, as the store's own tools take them (`AWS_ACCESS_KEY_ID`,
`AWS_ENDPOINT_URL`, …). A store that fails is asked again, with growing waits, before a run ends for it, and then by an
error of its own: it is not the user's mistake, and another attempt may find it mended.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, TypeVar

import fsspec

from pipeline.shards.format import MANIFEST_FILE, TOKENIZER_FILE, DatasetError, read_manifest, write_durably

# for who reads: with a question's own time, and an earlier copy's whose lock has to be waited for, below the watchdog's
# least limit (watchdog.floor_s=120), or it would be told as a hang
PATIENCE_S = 80.0
AHEAD_PATIENCE_S = 5.0  # for who copies ahead, and asks again anyway
FIRST_WAIT_S = 1.0
_LONGEST_WAIT_S = 16.0
_READ_BYTES = 8 << 20
_LASTING = (FileNotFoundError, PermissionError, ImportError, ValueError)
_LASTING_STATUSES = (401, 403, 404, 410)

Answer = TypeVar("Answer")

logger = logging.getLogger(__name__)


class StoreUnreachableError(Exception):
    """A store that did not answer for as long as it was asked, or until the reading ended.

    No OSError, which is taken for the user's to mend, and no RuntimeError, in whose words a lost rank is looked for.
    """


def read_object(url: str) -> bytes | None:
    """The contents of a small file, None if there is none. Raises DatasetError, StoreUnreachableError."""

    def read() -> bytes | None:
        system, address = fsspec.core.url_to_fs(url)
        system.invalidate_cache()  # else a listing of minutes ago would vouch for it
        try:
            return bytes(system.cat_file(address))
        except FileNotFoundError:
            return None

    return _ask(read, url, patience_s=PATIENCE_S, closed=threading.Event())


def copy_object(url: str, file: BinaryIO, *, patience_s: float, closed: threading.Event) -> tuple[int, str]:
    """Copy a file into an open one, from its beginning on. Returns its size and digest as in a manifest.

    After a failure it is asked for again, for `patience_s`; `closed` ends that, and the copy after its next part.
    Raises DatasetError for a store that does not give it, StoreUnreachableError for one that does not answer.
    """

    def copy() -> tuple[int, str]:
        check_open(closed, url)
        file.seek(0)
        digest, size_bytes = hashlib.sha256(), 0
        system, address = fsspec.core.url_to_fs(url)
        with system.open(address, "rb", block_size=_READ_BYTES, cache_type="readahead") as source:
            while content := source.read(_READ_BYTES):
                check_open(closed, url)
                file.write(content)
                digest.update(content)
                size_bytes += len(content)
        return size_bytes, f"sha256:{digest.hexdigest()}"

    return _ask(copy, url, patience_s=patience_s, closed=closed)


def check_open(closed: threading.Event, url: str) -> None:
    """Raises StoreUnreachableError where nobody wants the copy any more."""
    if closed.is_set():
        raise StoreUnreachableError(f"{url} is not copied: the reading has ended")


def _ask(question: Callable[[], Answer], url: str, *, patience_s: float, closed: threading.Event) -> Answer:
    first_failure_s, wait_s = None, FIRST_WAIT_S
    while True:
        try:
            return question()
        except StoreUnreachableError:
            raise
        # the stores' libraries raise classes of their own (botocore's, aiohttp's), not only OSError
        except Exception as told:
            error, now_s = _meant(told), time.monotonic()
            line = f"{url} cannot be read ({_one_line(error)}); {_remedy(error)}"
            if isinstance(error, _LASTING) or "Credentials" in type(error).__name__:
                raise DatasetError(line) from None
            if first_failure_s is None:
                first_failure_s = now_s
                logger.warning("%s; it is asked again for %.0f s", line, patience_s)
            if now_s + wait_s - first_failure_s > patience_s or closed.wait(wait_s):
                raise StoreUnreachableError(line) from None
        wait_s = min(2 * wait_s, _LONGEST_WAIT_S)


def _meant(error: Exception) -> Exception:
    """fsspec's http tells whatever befalls it on opening as a file that is not there, a cut line too."""
    cause = error.__cause__
    if not isinstance(error, FileNotFoundError) or not isinstance(cause, Exception):
        return error
    is_http = type(cause).__module__.startswith("aiohttp") or isinstance(cause, TimeoutError)
    return cause if is_http and getattr(cause, "status", None) not in _LASTING_STATUSES else error


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _remedy(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "see that the dataset is whole there: its manifest names the file"
    if isinstance(error, ImportError):
        return "install the package that it names (for s3:// the extra `s3`)"
    if isinstance(error, PermissionError) or "Credentials" in type(error).__name__:
        return "set the store's credentials in the environment (for s3:// AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)"
    return "check the address, the network and the store's settings in the environment"


def mirror_dataset(url: str, cache_dir: Path) -> Path:
    """A folder below `cache_dir` with a dataset's manifest and tokenizer, to which its shards are copied as needed.

    Another version of the dataset has another folder, so that a replaced one is never mixed with what is here. Raises
    DatasetError, StoreUnreachableError.
    """
    url = url.rstrip("/")
    manifest = read_object(f"{url}/{MANIFEST_FILE}")
    if manifest is None:
        raise DatasetError(f"dataset {url} is not finished, or not there (no {MANIFEST_FILE}); copy it there whole")
    content = hashlib.sha256(manifest).hexdigest()
    folder = cache_dir / f"{url.rpartition('/')[2]}-{content[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / TOKENIZER_FILE).is_file():
        tokenizer = read_object(f"{url}/{TOKENIZER_FILE}")
        if tokenizer is not None:
            write_durably(folder / TOKENIZER_FILE, tokenizer)
    if not (folder / MANIFEST_FILE).is_file():
        write_durably(folder / MANIFEST_FILE, manifest)
    read_manifest(folder)
    return folder

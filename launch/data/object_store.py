"""Files of a dataset in an object store, by fsspec: `s3://`, `gs://`, `hf://`, `https://`, `memory://` …

Credentials and endpoints come from the environment, as the store's own tools take them (`AWS_ACCESS_KEY_ID`,
`AWS_ENDPOINT_URL`, …). A store that fails is asked again, with growing waits, before a run ends for it.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, TypeVar

import fsspec

from pipeline.shards.format import MANIFEST_FILE, TOKENIZER_FILE, DatasetError, read_manifest, write_durably

RETRY_WAITS_S = (1.0, 2.0, 4.0, 8.0, 16.0)
_READ_BYTES = 8 << 20
_LASTING = (FileNotFoundError, PermissionError, ImportError, ValueError)

Answer = TypeVar("Answer")


def read_object(url: str) -> bytes | None:
    """The contents of a small file, None if there is none. Raises DatasetError."""

    def read() -> bytes | None:
        system, address = fsspec.core.url_to_fs(url)
        system.invalidate_cache()  # else a listing of minutes ago would vouch for it
        try:
            return bytes(system.cat_file(address))
        except FileNotFoundError:
            return None

    return _ask(read, url)


def copy_object(url: str, file: BinaryIO) -> tuple[int, str]:
    """Copy a file into an open one, from its beginning on. Returns its size and digest as in a manifest.

    Raises DatasetError for a store that does not give it.
    """

    def copy() -> tuple[int, str]:
        file.seek(0)
        digest, size_bytes = hashlib.sha256(), 0
        system, address = fsspec.core.url_to_fs(url)
        with system.open(address, "rb", block_size=_READ_BYTES, cache_type="readahead") as source:
            while content := source.read(_READ_BYTES):
                file.write(content)
                digest.update(content)
                size_bytes += len(content)
        return size_bytes, f"sha256:{digest.hexdigest()}"

    return _ask(copy, url)


def _ask(question: Callable[[], Answer], url: str) -> Answer:
    for wait_s in (*RETRY_WAITS_S, None):
        try:
            return question()
        # the stores' libraries raise classes of their own (botocore's, aiohttp's), not only OSError
        except Exception as error:
            if wait_s is None or isinstance(error, _LASTING) or "Credentials" in type(error).__name__:
                raise DatasetError(f"{url} cannot be read ({_one_line(error)}); {_remedy(error)}") from None
            time.sleep(wait_s)
    raise AssertionError("the last question is answered or raises")


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
    DatasetError.
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

"""An S3-compatible store as a destination: objects `PREFIX/RUN/step-00000100/NAME`, and `PREFIX/RUN/latest`.

Objects are created with `If-None-Match: *`, and read back, under the e-tag that they were found with, to be hashed:
what a store tells of its objects differs from store to store, their bytes do not. `latest` is moved with `If-Match`, so
that two publishers never move it back. Credentials and the endpoint are AWS's own (environment variables and files).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from checkpoint.manifest import CheckpointError, step_name
from checkpoint.publication import LATEST, OWNER, PublicationError, UnreachableError, named_step, require_owner

_READ_BYTES = 16 * 2**20
_PART_BYTES, _CONCURRENT_PARTS = 16 * 2**20, 2  # the memory of an upload


class S3Destination:
    """`s3://BUCKET/PREFIX`."""

    def __init__(self, url: str, *, run_name: str) -> None:
        try:
            import s3fs
        except ModuleNotFoundError:
            raise CheckpointError(f"{url} needs s3fs; pip install 'smollm2-pretraining[s3]'") from None
        bucket, _, prefix = url.removeprefix("s3://").strip("/").partition("/")
        if not bucket:
            raise CheckpointError(f"{url!r} names no bucket; wanted s3://BUCKET/PREFIX")
        self._root = "/".join(filter(None, (bucket, prefix, run_name)))
        # what others put there must be seen
        self._store: Any = s3fs.S3FileSystem(use_listings_cache=False, skip_instance_cache=True)

    @contextmanager
    def claim(self, run_key: str) -> Iterator[None]:
        key = f"{self._root}/{OWNER}"
        with self._errors_in_one_line(key):
            etag = self._etag(key)
            if etag is None:
                self._put(key, run_key, IfNoneMatch="*")
            else:
                require_owner(f"s3://{self._root}", owner=self._text(key, etag), run_key=run_key)
        yield

    def location(self, step: int) -> str:
        return f"s3://{self._root}/{step_name(step)}"

    def digest(self, step: int, name: str) -> str | None:
        key = f"{self._root}/{step_name(step)}/{name}"
        with self._errors_in_one_line(key):
            etag = self._etag(key)
            if etag is None:
                return None
            digest = hashlib.sha256()
            for part in self._read(key, etag):
                digest.update(part)
        return f"sha256:{digest.hexdigest()}"

    def create(self, step: int, files: Mapping[str, Path]) -> None:
        for name, source in files.items():
            key = f"{self._root}/{step_name(step)}/{name}"
            with self._errors_in_one_line(key):
                self._store.put_file(
                    str(source), key, mode="create", chunksize=_PART_BYTES, max_concurrency=_CONCURRENT_PARTS
                )

    def complete(self, step: int) -> None:
        """The proof, which is stored last, is what tells that all is there."""

    def move_latest(self, step: int, files: Mapping[str, Path]) -> int:
        key = f"{self._root}/{LATEST}"
        with self._errors_in_one_line(key):
            etag = self._etag(key)
            named = named_step(f"s3://{self._root}", "" if etag is None else self._text(key, etag))
            if named < step:
                self._put(key, step_name(step), **({"IfNoneMatch": "*"} if etag is None else {"IfMatch": etag}))
        return max(named, step)

    def _put(self, key: str, text: str, **condition: str) -> None:
        bucket, _, name = key.partition("/")
        self._store.call_s3("put_object", Bucket=bucket, Key=name, Body=f"{text}\n".encode(), **condition)

    def _text(self, key: str, etag: str) -> str:
        return b"".join(self._read(key, etag)).decode(errors="replace").strip()

    def _etag(self, key: str) -> str | None:
        try:
            return str(self._store.info(key, refresh=True)["ETag"])
        except FileNotFoundError:
            return None

    def _read(self, key: str, etag: str) -> Iterator[bytes]:
        bucket, _, name = key.partition("/")
        with self._store.open(key, "rb", block_size=_READ_BYTES, cache_type="readahead") as file:
            if str(file.details["ETag"]) != etag:
                raise PublicationError(f"s3://{bucket}/{name} was changed while it was read; publish again")
            while part := file.read(_READ_BYTES):
                yield part

    @contextmanager
    def _errors_in_one_line(self, key: str) -> Iterator[None]:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except FileExistsError:
            raise PublicationError(f"s3://{key} was made by somebody else meanwhile; publish again") from None
        except (BotoCoreError, ClientError, OSError) as error:
            reason = " ".join(str(error).split())[:200]
            if "PreconditionFailed" in repr(error) or "pre-conditions" in reason or "conditional request" in reason:
                raise PublicationError(f"s3://{key} was changed by somebody else meanwhile; publish again") from None
            raise UnreachableError(f"s3://{key}: {type(error).__name__}: {reason}") from None

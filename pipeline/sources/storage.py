"""Where files lie: local paths, and URLs of any fsspec file system (`s3://`, `gs://`, `https://`, `memory://` …).

A file's version is its size and time of change, or, in a store, its size and e-tag or whatever else the store knows
of its contents; a store that knows nothing is refused. It is compared when the file is opened; s3fs asks for the same
e-tag in every request, so that an object that is replaced while it is read ends in an error, never in a mixture.
Credentials and endpoints come from the environment, as the store's own tools take them (`AWS_ACCESS_KEY_ID`,
`AWS_ENDPOINT_URL`, …).
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, cast

from pipeline.document import SourceError, one_line
from pipeline.sources.local_paths import matching_paths

# what the stores of fsspec call the mark of an object's contents, and, failing that, its time of change; blob_id and
# xet_hash are the Hugging Face hub's, sha is GitHub's, CRC a zip file's
_VERSION_KEYS = (
    *("ETag", "etag", "md5Hash", "content_md5", "Content-MD5", "blob_id", "xet_hash", "sha", "CRC"),
    *("LastModified", "last_modified", "Last-Modified", "mtime", "modificationTime", "modify", "created"),
)

_READ_BYTES = 1 << 20
_REQUEST_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file that can be read: its path or URL, its size, and a version that differs when it has been written since."""

    path: str
    size_bytes: int
    version: str


def find_files(globs: Sequence[str], *, source: str) -> list[StoredFile]:
    """The files of all globs, each once, by the first of its paths, in the order of the sorted paths.

    Raises SourceError for a glob that matches no file or a link that leads nowhere, a folder that cannot be read, and a
    store that cannot be asked.
    """
    found: dict[str, StoredFile] = {}
    for pattern in globs:
        if is_url(pattern):
            with _telling(f"source {source!r}: {pattern} cannot be listed"):
                matches = _find_objects(pattern)
        else:
            try:
                paths = sorted(matching_paths(pattern))
            except OSError as error:
                raise cannot_be_listed(error, source=source) from None
            matches = list(_files_at(paths, source=source))
        if not matches:
            where = "" if is_url(pattern) else f" (from {Path.cwd()})"
            if not is_url(pattern) and Path(pattern).is_dir():
                where = f", which is a folder; for all files below it: {pattern}/**/*"
            raise SourceError(f"source {source!r}: no file matches {pattern}{where}")
        for file in matches:
            found.setdefault(file.path if is_url(file.path) else os.path.realpath(file.path), file)
    return sorted(found.values(), key=lambda file: file.path)


def cannot_be_listed(error: OSError, *, source: str) -> SourceError:
    return SourceError(
        f"source {source!r}: {readable(error.filename)} cannot be listed: {error.strerror}; "
        "make it readable, or leave it out of the source's globs"
    )


def stored_file(path: str | Path) -> StoredFile:
    """What a local file is now."""
    status = os.stat(path)  # noqa: PTH116  (as given: a Path would be spelled otherwise)
    return StoredFile(
        path=str(path),
        size_bytes=status.st_size,
        version=f"{status.st_size} bytes, changed at {status.st_mtime_ns} ns",
    )


def open_file(path: str, *, version: str) -> BinaryIO:
    """A buffered, seekable stream of the file's own bytes.

    Raises SourceError if the file is not of this version any more, is gone, or its store cannot be asked.
    """
    name = readable(path)
    if not is_url(path):
        try:
            file = open(path, "rb", buffering=_READ_BYTES)  # noqa: PTH123, SIM115  (handed on)
            now = stored_file(path).version
        except FileNotFoundError:
            raise SourceError(f"{name} is gone since the run listed it; restore it") from None
    else:
        with _telling(f"{name} cannot be opened"):
            system, address = _system_of(path)
            system.invalidate_cache()  # else a listing of minutes ago would vouch for it
            now = _version(system.info(address), name=name)
            remote = system.open(address, "rb", block_size=_REQUEST_BYTES)
            file = io.BufferedReader(cast(io.RawIOBase, _Remote(remote, name)), buffer_size=_READ_BYTES)
    if now != version:
        file.close()
        raise SourceError(f"{name} has changed since the run listed it ({version} → {now}); restore it, or start over")
    return file


def is_url(path: str) -> bool:
    return "://" in path


def readable(path: str | Path) -> str:
    """The path as text that can be stored: Linux file names are bytes, and need not be UTF-8."""
    return os.fsencode(path).decode("utf-8", errors="backslashreplace")


class _Remote(io.RawIOBase):
    """A file of fsspec whose errors, whatever class the store's library gives them, are one line."""

    def __init__(self, file: Any, name: str) -> None:
        self._file = file
        self._name = name

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        with _telling(f"{self._name} cannot be read"):
            try:
                self._file.seek(offset, whence)
            except ValueError as error:  # a web server that gives no ranges
                raise SourceError(
                    f"{self._name} cannot be read from its middle ({error}); copy it to a disk or to another store"
                ) from None
        return self.tell()

    def tell(self) -> int:
        with _telling(f"{self._name} cannot be read"):
            position: int = self._file.tell()
        return position

    def readinto(self, target: Any, /) -> int:
        view = memoryview(target).cast("B")
        with _telling(f"{self._name} cannot be read"):
            content = self._file.read(len(view))
        view[: len(content)] = content
        return len(content)

    def close(self) -> None:
        self._file.close()
        super().close()


def _files_at(paths: Sequence[str], *, source: str) -> Iterator[StoredFile]:
    for path in paths:
        if Path(path).is_file():
            yield stored_file(path)
        elif Path(path).is_symlink() and not Path(path).exists():  # what has vanished is no link
            raise SourceError(
                f"source {source!r}: {readable(path)} is a link that leads nowhere, so its documents would be missing; "
                "restore its target, or remove the link"
            )


def _find_objects(pattern: str) -> list[StoredFile]:
    system, address = _system_of(pattern)
    if any(character in address for character in "*?["):
        listing = system.glob(address, detail=True)
    else:
        listing = {address: system.info(address)} if system.exists(address) else {}
    return [_stored_object(system, name, info) for name, info in listing.items() if info["type"] == "file"]


def _stored_object(system: Any, name: str, info: dict[str, Any]) -> StoredFile:
    if info.get("size") is None or _mark(info) is None:
        info = system.info(name)  # a web server's index of a folder tells only names
    if info.get("size") is None:  # some web servers; without it a cut file cannot be told from a whole one
        raise ValueError(f"the store does not tell the size of {name}")
    return StoredFile(
        path=system.unstrip_protocol(name), size_bytes=int(info["size"]), version=_version(info, name=name)
    )


def _version(info: dict[str, Any], *, name: str) -> str:
    mark = _mark(info)
    if mark is None:
        raise SourceError(
            f"the store of {name} tells neither an e-tag nor a time of change, so that a change would go unseen; "
            "copy the file to a disk or to another store"
        )
    return f"{info['size']} bytes, {mark}"


def _mark(info: dict[str, Any]) -> str | None:
    for key in _VERSION_KEYS:
        value = info.get(key)
        if value not in (None, ""):
            # some stores give one time as a number in a listing and as a date of a single object
            text = str(value.timestamp() if isinstance(value, datetime) else value)
            return f"{key} {text.strip(chr(34))}"
    return None


@contextmanager
def _telling(what: str) -> Iterator[None]:
    """Stores raise what their client libraries raise (botocore's, aiohttp's, gcsfs's own), not only OSError."""
    try:
        yield
    except SourceError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise SourceError(f"{what} ({reason}); {_remedy(error)}") from None


def _remedy(error: Exception) -> str:
    if type(error).__name__ == "FileExpired":
        return "it has changed while it was read: restore it, or start over"
    if isinstance(error, ImportError):
        return "install the package that it names (for s3:// the extra `s3`)"
    if isinstance(error, PermissionError) or "Credentials" in type(error).__name__:
        return "set the store's credentials in the environment (for s3:// AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)"
    return "check the address, the network and the store's settings in the environment"


def _system_of(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the address in it."""
    import fsspec  # not above: workers wait for what is imported there, and most read local files

    system, address = fsspec.core.url_to_fs(url)
    return system, address

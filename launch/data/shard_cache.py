"""A bounded folder of shards copied from an object store, shared by the ranks of a node.

    CACHE/.lock                                who decides what to remove
    CACHE/NAME-DIGEST/manifest.json, …         a dataset's folder (`object_store.mirror_dataset`)
    CACHE/NAME-DIGEST/data-00000-000.arrow     a whole shard of the right digest: appears by one rename
    CACHE/NAME-DIGEST/.data-….XXXX.partial     being copied, locked while it is, as large as the shard from the start

A shard is copied by one process while the others wait for it, and is used once its size and digest are the manifest's.
What is removed to make room is what is needed last: the order of samples is arithmetic, so `needs` can say it. A shard
is never removed for one that is needed later, and one of `kept`, which is read again and again, only for one that is
read now and has no other room. A reader that has mapped a shard keeps its map when the file is removed.

A cache that is smaller than the datasets fetches shards again and again, since samples come in random order: it is
there to bound the disk, and to copy what comes next while the step before it is computed.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from launch.data import object_store
from pipeline.shards.format import DatasetError, partial_path

_NOW = -1  # before everything that `needs` may name
_WAIT_S = 0.1
_PARTIAL = "*.arrow.*.partial"  # and not what another process writes of a manifest at this moment


@dataclass(frozen=True)
class RemoteShard:
    """A shard by its place in the store and in the cache, and what its manifest says of it."""

    url: str
    path: Path
    size_bytes: int
    digest: str


class ShardCache:
    """`needs` gives the paths of the shards that this node reads next, the soonest first, `kept` are those of the
    validation set; by default none is known. `closed`, once it is set, ends copies that are under way."""

    def __init__(self, directory: Path, *, capacity_bytes: int) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.capacity_bytes = capacity_bytes
        self.needs: Callable[[], Sequence[Path]] = tuple
        self.kept: frozenset[Path] = frozenset()
        self.closed = threading.Event()

    def ensure(self, shard: RemoteShard) -> None:
        """Have a shard that is read now. Raises DatasetError if the store does not give it as the manifest says,
        StoreUnreachableError if it does not answer."""
        if not shard.path.exists():
            self._copy(shard, next_use=_NOW)

    def prefetch(self, shard: RemoteShard, *, next_use: int) -> bool:
        """Have a shard that is read later, as the `next_use`-th of `needs`; False if there is no room for it yet.

        Raises as `ensure` does, and sooner.
        """
        return shard.path.exists() or self._copy(shard, next_use=next_use)

    def remove_leftovers(self) -> None:
        """Partial copies of processes that were killed."""
        with self._locked(self.directory / ".lock"):
            for partial in self.directory.glob(f"*/**/{_PARTIAL}"):
                with suppress(FileNotFoundError), partial.open("rb") as file:
                    if _try_lock(file.fileno()):
                        partial.unlink()

    def _copy(self, shard: RemoteShard, *, next_use: int) -> bool:
        shard.path.parent.mkdir(parents=True, exist_ok=True)
        with self._locked(shard.path.with_name(f".{shard.path.name}.lock")):
            # whoever held the lock before may have copied it
            if shard.path.exists():
                return True
            partial = partial_path(shard.path)
            with self._locked(self.directory / ".lock"):
                # born locked: a start that removes what a kill left must not take it for that
                file = partial.open("w+b")
                fcntl.flock(file, fcntl.LOCK_EX)
            try:
                with file:
                    while (reserved := self._reserve(file, partial, shard, next_use=next_use)) is None:
                        object_store.check_open(self.closed, shard.url)
                        self.closed.wait(_WAIT_S)
                        self.remove_leftovers()
                    if not reserved:
                        return False
                    # a reader may be waiting for the lock, to ask with more patience
                    patience_s = object_store.PATIENCE_S if next_use == _NOW else object_store.AHEAD_PATIENCE_S
                    _fill(file, shard, patience_s=patience_s, closed=self.closed)
                    # a list of the folder that is read while a file takes another name may hold neither; and before the
                    # file is closed, from when on it would be taken for a leftover
                    with self._locked(self.directory / ".lock"):
                        partial.rename(shard.path)
            finally:
                partial.unlink(missing_ok=True)
        return True

    def _reserve(self, file: BinaryIO, partial: Path, shard: RemoteShard, *, next_use: int) -> bool | None:
        """Make room, and take it: the partial file is as large as the shard at once, so that others count it.

        False if there is none for a shard that is only read later; None where there will be once others are copied.
        """
        with self._locked(self.directory / ".lock"):
            files = self._files()
            files.pop(partial, None)
            finished = [path for path in files if not path.name.endswith(".partial")]
            free_bytes = self.capacity_bytes - sum(status.st_size for status in files.values())
            uses = {path: place for place, path in reversed(list(enumerate(self.needs())))}
            uses |= dict.fromkeys(self.kept, 0)
            # first what is not known to be needed, the longest unread first; then what is needed last
            finished.sort(
                key=lambda path: (path in uses, -uses.get(path, 0), path in self.kept, files[path].st_atime_ns)
            )
            removed = []
            for path in finished:
                if free_bytes >= shard.size_bytes or uses.get(path, len(uses)) <= next_use:
                    break
                removed.append(path)
                free_bytes += files[path].st_size
            if free_bytes < shard.size_bytes:
                if next_use != _NOW:
                    return False
                # one without a size waits for room, as this does
                if any(status.st_size for path, status in files.items() if path not in finished):
                    return None
                raise DatasetError(
                    f"shard {shard.url} of {shard.size_bytes:,} bytes does not fit into data.cache_bytes="
                    f"{self.capacity_bytes}; raise it"
                )
            for path in removed:
                path.unlink(missing_ok=True)
            try:
                # and of the disk, which may be fuller than this folder
                os.posix_fallocate(file.fileno(), 0, shard.size_bytes)
            except OSError as error:
                raise DatasetError(
                    f"data.cache_dir={self.directory} has no room for shard {shard.url} of {shard.size_bytes:,} bytes "
                    f"({error.strerror}); free space there, or lower data.cache_bytes={self.capacity_bytes}"
                ) from None
        return True

    def _files(self) -> dict[Path, os.stat_result]:
        """The shards in the cache, whole and partial."""
        files = {}
        for path in self.directory.glob("*/**/*"):
            if path.suffix == ".arrow" or path.match(_PARTIAL):
                with suppress(FileNotFoundError):  # a copy that was just given up
                    files[path] = path.stat()
        return files

    @contextmanager
    def _locked(self, file: Path) -> Iterator[None]:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _fill(file: BinaryIO, shard: RemoteShard, *, patience_s: float, closed: threading.Event) -> None:
    wanted = (shard.size_bytes, shard.digest)
    found = object_store.copy_object(shard.url, file, patience_s=patience_s, closed=closed)
    if found != wanted:
        raise DatasetError(
            f"shard {shard.url} has {found[0]:,} bytes of digest {found[1][:19]}…, its manifest says {wanted[0]:,} of "
            f"{wanted[1][:19]}…: it was replaced or is damaged; put the dataset of this run back, or start another run"
        )
    file.flush()
    os.fsync(file.fileno())


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True

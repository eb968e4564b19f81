"""A folder as a destination: `FOLDER/RUN/step-00000100/`, whole or absent, and `FOLDER/RUN/latest`.

A copy of a run folder has the run's key too, and its own locks: publications exclude each other in the destination.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from checkpoint.lock import exclusive_lock
from checkpoint.manifest import step_name, sync_directory, write_durably
from checkpoint.publication import LATEST, OWNER, PublicationError, named_step, require_owner


class DirectoryDestination:
    """Files gather in `.partial-step-…`, which is renamed when all are there."""

    def __init__(self, folder: Path, *, run_name: str) -> None:
        self._folder = folder / run_name

    @contextmanager
    def claim(self, run_key: str) -> Iterator[None]:
        busy = f"another publication to {self._folder} is under way; wait for its end"
        with exclusive_lock(self._folder / ".publication.lock", busy=busy):
            path = self._folder / OWNER
            if path.exists():
                owner = path.read_text(encoding="utf-8", errors="replace").strip()
                require_owner(str(self._folder), owner=owner, run_key=run_key)
            else:
                write_durably(path, f"{run_key}\n".encode())
            yield

    def location(self, step: int) -> str:
        return str(self._folder / step_name(step))

    def digest(self, step: int, name: str) -> str | None:
        for folder in (self._folder / step_name(step), self._partial(step)):
            if folder.is_dir():
                path = folder / name
                if not path.is_file():
                    return None
                with path.open("rb") as file:
                    return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
        return None

    def create(self, step: int, files: Mapping[str, Path]) -> None:
        final, partial = self._folder / step_name(step), self._partial(step)
        if final.exists():
            raise PublicationError(
                f"{final} is there already, without {', '.join(files)}; remove it, or publish elsewhere"
            )
        partial.mkdir(parents=True, exist_ok=True)
        for name, source in files.items():
            temporary = partial / f".{name}"
            shutil.copyfile(source, temporary)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.rename(partial / name)
        sync_directory(partial)

    def complete(self, step: int) -> None:
        final, partial = self._folder / step_name(step), self._partial(step)
        if final.exists():
            return
        for leftover in partial.glob(".*"):
            leftover.unlink()
        try:
            partial.rename(final)
        except OSError as error:
            if final.exists():
                raise PublicationError(f"{final} was published by somebody else meanwhile; publish again") from error
            raise
        sync_directory(self._folder)

    def move_latest(self, step: int, files: Mapping[str, Path]) -> int:
        path = self._folder / LATEST
        text = path.read_text(encoding="utf-8", errors="replace").strip() if path.is_file() else ""
        named = named_step(str(self._folder), text)
        if named < step:
            write_durably(path, f"{step_name(step)}\n".encode())
        return max(named, step)

    def _partial(self, step: int) -> Path:
        return self._folder / f".partial-{step_name(step)}"

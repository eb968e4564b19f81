"""The Hugging Face hub as a destination: a branch `step-00000100` an export, and `main` for the latest.

The file `run-key` on `main` says whose repository it is. A branch begins empty and is filled by one commit on a known
parent, so that two publishers cannot mix; what the hub has already is not sent again. The hub tells the digest of every
large file; small ones are read back. A repository that does not exist is made as a private one. Token and endpoint are
huggingface_hub's own (`HF_TOKEN`, `HF_ENDPOINT`).
"""

from __future__ import annotations

import hashlib
import logging
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from checkpoint.manifest import CheckpointError, step_name
from checkpoint.publication import OWNER, PublicationError, UnreachableError, require_owner

_TITLE = re.compile(r"step-(\d+)")
_CONFLICT = (409, 412)
_WEIGHTS = (".safetensors", ".safetensors.index.json")


class HubDestination:
    """`hf://OWNER/NAME`."""

    def __init__(self, url: str) -> None:
        from huggingface_hub import HfApi

        for library in ("httpx", "httpx2", "huggingface_hub"):
            logging.getLogger(library).setLevel(logging.ERROR)  # they tell of every request
        self._repository = url.removeprefix("hf://").strip("/")
        if self._repository.count("/") != 1:
            raise CheckpointError(f"{url!r} names no repository; wanted hf://OWNER/NAME")
        self._hub: Any = HfApi(library_name="smollm2-pretraining")

    @contextmanager
    def claim(self, run_key: str) -> Iterator[None]:
        from huggingface_hub import CommitOperationAdd

        with self._errors_in_one_line():
            self._hub.create_repo(self._repository, private=True, exist_ok=True)
            head = self._hub.list_repo_commits(self._repository)[0].commit_id
            if self._hub.get_paths_info(self._repository, [OWNER], revision="main"):
                owner = self._read(OWNER, revision="main").decode(errors="replace").strip()
                require_owner(f"hf://{self._repository}", owner=owner, run_key=run_key)
            else:
                add = CommitOperationAdd(path_in_repo=OWNER, path_or_fileobj=f"{run_key}\n".encode())
                self._commit(OWNER, [add], revision="main", parent=head)
        yield

    def location(self, step: int) -> str:
        return f"hf://{self._repository}@{step_name(step)}"

    def digest(self, step: int, name: str) -> str | None:
        from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

        with self._errors_in_one_line():
            try:
                found = self._hub.get_paths_info(self._repository, [name], revision=step_name(step))
            except (RepositoryNotFoundError, RevisionNotFoundError):
                return None
            if not found:
                return None
            if found[0].lfs is not None:
                return f"sha256:{found[0].lfs.sha256}"
            return f"sha256:{hashlib.sha256(self._read(name, revision=step_name(step))).hexdigest()}"

    def create(self, step: int, files: Mapping[str, Path]) -> None:
        with self._errors_in_one_line():
            # from the first commit: the head of main holds another step's files
            first = self._hub.list_repo_commits(self._repository)[-1].commit_id
            self._hub.create_branch(self._repository, branch=step_name(step), revision=first, exist_ok=True)
            head = self._hub.list_repo_commits(self._repository, revision=step_name(step))[0].commit_id
            self._commit(step_name(step), self._additions(files), revision=step_name(step), parent=head)

    def complete(self, step: int) -> None:
        """One commit has brought all files."""

    def move_latest(self, step: int, files: Mapping[str, Path]) -> int:
        from huggingface_hub import CommitOperationDelete

        with self._errors_in_one_line():
            commits = self._hub.list_repo_commits(self._repository)
            titles = (_TITLE.fullmatch(commit.title) for commit in commits)
            named = next((int(title[1]) for title in titles if title), -1)
            if named >= step:
                return named
            # of a model in other shards
            stale = [
                name
                for name in self._hub.list_repo_files(self._repository)
                if name.endswith(_WEIGHTS) and name not in files
            ]
            operations = [*self._additions(files), *(CommitOperationDelete(name) for name in stale)]
            self._commit(step_name(step), operations, revision="main", parent=commits[0].commit_id)
            return step

    def _additions(self, files: Mapping[str, Path]) -> list[Any]:
        from huggingface_hub import CommitOperationAdd

        return [CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, path in files.items()]

    def _commit(self, title: str, operations: list[Any], *, revision: str, parent: str) -> None:
        self._hub.create_commit(
            self._repository, operations, commit_message=title, revision=revision, parent_commit=parent
        )

    def _read(self, name: str, *, revision: str) -> bytes:
        # not from the cache, which would tell what was there once
        with tempfile.TemporaryDirectory() as folder:
            path = self._hub.hf_hub_download(self._repository, name, revision=revision, local_dir=folder)
            return Path(path).read_bytes()

    @contextmanager
    def _errors_in_one_line(self) -> Iterator[None]:
        from huggingface_hub.errors import HfHubHTTPError

        where = f"hf://{self._repository}"
        try:
            yield
        except PublicationError:
            raise
        except HfHubHTTPError as error:
            if error.response is not None and error.response.status_code in _CONFLICT:
                raise PublicationError(f"{where} was changed by somebody else meanwhile; publish again") from None
            raise UnreachableError(f"{where}: {' '.join(str(error).split())[:200]}") from None
        # beside its own errors the hub's library lets through those of its HTTP library, which changes with its version
        except Exception as error:
            raise UnreachableError(f"{where}: {type(error).__name__}: {' '.join(str(error).split())[:200]}") from None

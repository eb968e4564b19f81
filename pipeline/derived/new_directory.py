"""A folder that appears whole or not at all: made under a temporary name beside its place, then renamed.

A process that is killed leaves `.NAME.partial`, which the next one for the same place clears.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.document import PipelineError
from pipeline.shards.format import sync_directory
from pipeline.workspace import LOCK_FILE, only_run


@contextmanager
def new_directory(output: Path) -> Iterator[Path]:
    """The folder to fill; it becomes `output` when the context ends well, and is removed when it does not.

    What is written into it is the caller's to sync. Raises PipelineError if `output` is there already or another
    process is making it, and OSError, with a name, if the disk is full.
    """
    refuse_existing(output)
    temporary = output.parent / f".{output.name}.partial"
    with only_run(temporary):
        refuse_existing(output)
        _clear(temporary)
        try:
            yield temporary
            sync_directory(temporary)
            temporary.rename(output)
            sync_directory(output.parent)
        except BaseException as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                # the name of a file that is gone by now, or none, tells less than that of the folder
                raise OSError(error.errno, error.strerror, str(output)) from None
            raise


def refuse_existing(output: Path) -> None:
    """Raises PipelineError if there is anything at `output`."""
    if output.exists() or output.is_symlink():
        raise PipelineError(f"{output} is there already; remove it, or choose another output")


def _clear(directory: Path) -> None:
    for entry in directory.iterdir():
        if entry.name == LOCK_FILE:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()

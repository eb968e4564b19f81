"""A list in a text file, one entry a line. A `#` at the start of a line or after white space begins a comment."""

from __future__ import annotations

import re
from pathlib import Path

from pipeline.document import PipelineError

_COMMENT = re.compile(r"(?:^|\s)#.*")


def read_list(path: Path) -> list[str]:
    """The entries in their order, stripped. Raises PipelineError for a file that cannot be read or has none."""
    try:
        text = path.read_text(encoding="utf-8-sig")  # some editors begin a file with a byte order mark
    except UnicodeDecodeError as error:
        raise PipelineError(f"{path}: not UTF-8 text (byte {error.start}); wanted one entry a line") from None
    except OSError as error:
        raise PipelineError(f"{path}: cannot be read: {error.strerror}; wanted a text file, one entry a line") from None
    entries = [entry for line in text.splitlines() if (entry := _COMMENT.sub("", line).strip())]
    if not entries:
        raise PipelineError(f"{path}: holds no entry; wanted one a line, or no filter that reads it")
    return entries

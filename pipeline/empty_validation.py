"""Says that a dataset has no validation split, which a training run refuses, and what fraction would make one."""

from __future__ import annotations

import json
import math
from pathlib import Path

from pipeline.shards.format import DatasetManifest
from pipeline.workspace import CONFIG_FILE

# enough for a loss to mean something: 32 sequences of 2,048 tokens
WANTED_TOKENS = 65_536
WANTED_DOCUMENTS = 10
# of a small corpus no more is taken from training
MOST_OF_A_SMALL_CORPUS = 0.1


def empty_validation_warning(dataset: Path, manifest: DatasetManifest) -> str | None:
    """One line, or None if there are validation documents. Reads the config that lies in the dataset's folder."""
    if manifest.splits["validation"].documents:
        return None
    given = _validation_fraction(dataset)
    wanted = wanted_fraction(documents=manifest.documents, tokens=manifest.tokens, given=given or 0.0)
    current = "of the config that made it" if given is None else f"(now {given:g})"
    return (
        f"the validation split is empty, and a training run needs a sequence of it at least; raise validation_fraction "
        f"{current} to some {wanted:g}, for about {wanted * manifest.documents:,.0f} documents, "
        f"{wanted * manifest.tokens:,.0f} tokens, and make the dataset again"
    )


def wanted_fraction(*, documents: int, tokens: int, given: float) -> float:
    """One digit, rounded up, and more than `given`, which gave none."""
    enough = max(WANTED_DOCUMENTS / max(1, documents), WANTED_TOKENS / max(1, tokens))
    fraction = min(0.5, max(min(MOST_OF_A_SMALL_CORPUS, enough), 2 * given))
    digit = 10.0 ** math.floor(math.log10(fraction))
    # without the last bits of a quotient such as 0.1 / 0.1, which would round up to the next digit
    return math.ceil(round(fraction / digit, 6)) * digit


def _validation_fraction(dataset: Path) -> float | None:
    """None for a dataset made of others, which has no such file, and for a file that is damaged."""
    try:
        return float(json.loads((dataset / CONFIG_FILE).read_bytes())["validation_fraction"])
    except (OSError, ValueError, KeyError, TypeError):
        return None

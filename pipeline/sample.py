"""The texts that a tokenizer is trained on: the first training documents of every unit, in proportion to its size.

Spread over all units, so that no source and no end of one is left out; deterministic; read as a stream.
"""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.config import PipelineConfig
from pipeline.plan import Plan
from pipeline.unit import UnitReader


def sample_texts(config: PipelineConfig, plan: Plan, *, sample_bytes: int) -> Iterator[str]:
    """About `sample_bytes` of text, or all of it if there is less. Validation documents are left out.

    Raises SourceError for a damaged file, as far as it is read.
    """
    share = sample_bytes / max(1, plan.size_bytes)
    for unit in plan.units:
        # at least a byte: a unit gives its first document however small the sample
        quota_bytes = max(1.0, share * unit.size_bytes)
        taken_bytes = 0
        for kept in UnitReader(config, unit):
            if share < 1 and taken_bytes >= quota_bytes:
                break
            if kept.split == "train":
                taken_bytes += kept.text_bytes
                yield kept.document.text

"""Which checkpoints of a run stay, as a pure function of what is known of them. Reads and deletes nothing.

The rules that the user chooses (`RetentionConfig`): the last N, every K steps, the best M by validation loss. What no
rule can override, in the words of `_promises`: a pinned one, the newest, the newest that verified, one whose export is
wanted and not proven, one that another process reads, and the one that `latest` names, which a trainer that was killed
between its last two steps has left behind the newest. A checkpoint that is known to be damaged counts for no rule,
so that damaged ones do not push whole ones out.

Above the disk's high-water mark the rules give way, the promises do not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from checkpoint.config import RetentionConfig

_Rules = dict[int, dict[Literal["every", "last", "best"], str]]


@dataclass(frozen=True)
class Candidate:
    """What is known of one checkpoint. `is_whole` is None as long as nobody has hashed it."""

    step: int
    size_bytes: int = 0
    validation_loss: float | None = None
    is_whole: bool | None = None
    is_pinned: bool = False
    is_wanted_unproven: bool = False
    is_being_read: bool = False
    is_named_latest: bool = False


@dataclass(frozen=True)
class Decision:
    """What becomes of one checkpoint, and why; a checkpoint may be kept for several reasons."""

    step: int
    size_bytes: int
    is_kept: bool
    reasons: tuple[str, ...]


def decide(candidates: Iterable[Candidate], config: RetentionConfig, *, bytes_to_free: int = 0) -> tuple[Decision, ...]:
    """A decision for every checkpoint, ascending by step.

    With `bytes_to_free`, what no promise protects is given up until that much is freed: first those kept for their
    number of steps, then the last N, then the best M, and the oldest of each first. Nothing at all is deleted if no
    checkpoint is known to be whole.
    """
    ordered = sorted(candidates, key=lambda candidate: candidate.step)
    promises = _promises(ordered)
    rules = _rules(ordered, config)
    deleted = {one.step for one in ordered if not promises[one.step] and not rules[one.step]}
    reasons = {one.step: (*promises[one.step], *rules[one.step].values()) for one in ordered}
    for step in deleted:
        reasons[step] = ("no rule keeps it",)
    freed = sum(one.size_bytes for one in ordered if one.step in deleted)
    for one in _by_worth(ordered, rules):
        if freed >= bytes_to_free:
            break
        if not promises[one.step] and one.step not in deleted and one.size_bytes:  # a link frees nothing
            deleted.add(one.step)
            freed += one.size_bytes
            reasons[one.step] = ("the disk is above its mark: given up, though " + ", ".join(rules[one.step].values()),)
    return tuple(Decision(one.step, one.size_bytes, one.step not in deleted, reasons[one.step]) for one in ordered)


def _promises(ordered: Sequence[Candidate]) -> dict[int, list[str]]:
    newest = ordered[-1].step if ordered else None
    verified = max((one.step for one in ordered if one.is_whole), default=None)
    promises: dict[int, list[str]] = {}
    for one in ordered:
        held = {
            "pinned": one.is_pinned,
            "the newest": one.step == newest,
            "the newest that verified": one.step == verified,
            "its export is wanted and not proven": one.is_wanted_unproven,
            "another process reads it": one.is_being_read,
            "`latest` still names it": one.is_named_latest and one.step != newest,
            "none of this run's checkpoints has verified": verified is None,
        }
        promises[one.step] = [reason for reason, is_held in held.items() if is_held]
    return promises


def _rules(ordered: Sequence[Candidate], config: RetentionConfig) -> _Rules:
    sound = [one for one in ordered if one.is_whole is not False]
    rules: _Rules = {one.step: {} for one in ordered}
    if config.keep_every_steps is not None:
        for one in sound:
            if one.step % config.keep_every_steps == 0:
                rules[one.step]["every"] = f"a multiple of {config.keep_every_steps:,} steps"
    for one in sound[-config.keep_last :]:
        rules[one.step]["last"] = f"one of the last {config.keep_last}"
    measured = [one for one in sound if one.validation_loss is not None and math.isfinite(one.validation_loss)]
    # of equal losses the newer one: it has seen more
    best = sorted(measured, key=lambda one: (one.validation_loss, -one.step))[: config.keep_best]
    for one in best:
        rules[one.step]["best"] = f"one of the best {config.keep_best} by validation loss"
    return rules


def _by_worth(ordered: Sequence[Candidate], rules: _Rules) -> list[Candidate]:
    """From what is given up first to what is given up last."""
    return sorted(ordered, key=lambda one: ("best" in rules[one.step], "last" in rules[one.step], one.step))

"""Which checkpoints stay: rules worked by hand, and the promises on every set that a machine can think of."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoint.config import RetentionConfig
from checkpoint.retention import Candidate, decide

SIZE = 100


def whole(step: int, **known: object) -> Candidate:
    return Candidate(**{"step": step, "size_bytes": SIZE, "is_whole": True, **known})  # type: ignore[arg-type]


def kept(candidates: Sequence[Candidate], *, bytes_to_free: int = 0, **rules: object) -> list[int]:
    config = RetentionConfig.model_validate({"keep_last": 1, **rules})
    return [one.step for one in decide(candidates, config, bytes_to_free=bytes_to_free) if one.is_kept]


def test_the_last_n_stay() -> None:
    assert kept([whole(step) for step in (1, 2, 3, 4)], keep_last=2) == [3, 4]


def test_multiples_of_k_steps_stay() -> None:
    assert kept([whole(step) for step in (100, 150, 200, 250)], keep_every_steps=100) == [100, 200, 250]


def test_the_best_by_validation_loss_stay_and_of_equals_the_newer() -> None:
    losses = {1: 3.0, 2: 2.0, 3: 2.0, 4: 2.5, 5: None}
    assert kept([whole(step, validation_loss=loss) for step, loss in losses.items()], keep_best=1) == [3, 5]
    assert kept([whole(step, validation_loss=loss) for step, loss in losses.items()], keep_best=2) == [2, 3, 5]


def test_a_loss_that_is_not_a_number_is_not_the_best() -> None:
    losses = {1: 3.0, 2: float("nan"), 3: float("-inf"), 4: 4.0}
    assert kept([whole(step, validation_loss=loss) for step, loss in losses.items()], keep_best=1) == [1, 4]


def test_pinned_read_and_unproven_ones_stay() -> None:
    candidates = [whole(1, is_pinned=True), whole(2, is_being_read=True), whole(3, is_wanted_unproven=True)]
    assert kept([*candidates, whole(4), whole(5)]) == [1, 2, 3, 5]


def test_damaged_ones_push_no_whole_one_out() -> None:
    candidates = [whole(1), whole(2), whole(3, is_whole=False), whole(4, is_whole=False), whole(5, is_whole=False)]
    # 5 is the newest, which `latest` names
    assert kept(candidates, keep_last=2) == [1, 2, 5]


def test_nothing_goes_before_one_has_verified() -> None:
    candidates = [whole(step, is_whole=None) for step in (1, 2, 3)]
    assert kept(candidates) == [1, 2, 3]
    (first, *_) = decide(candidates, RetentionConfig(keep_last=1))
    assert first.reasons == ("none of this run's checkpoints has verified",)


def test_every_decision_says_why() -> None:
    candidates = [whole(100), whole(150), whole(200, is_pinned=True), whole(250)]
    told = [one.reasons for one in decide(candidates, RetentionConfig(keep_last=1, keep_every_steps=100))]
    assert told == [
        ("a multiple of 100 steps",),
        ("no rule keeps it",),
        ("pinned", "a multiple of 100 steps"),
        ("the newest", "the newest that verified", "one of the last 1"),
    ]


def test_above_the_mark_what_frees_nothing_stays() -> None:
    linked = [whole(1, size_bytes=0), whole(2), whole(3)]
    assert kept(linked, keep_last=3, bytes_to_free=SIZE) == [1, 3]


def test_above_the_mark_rules_give_way_in_their_order_and_no_further_than_needed() -> None:
    losses = {100: 1.0, 200: 2.0, 300: 3.0, 350: 4.0, 400: 5.0}
    candidates = [whole(step, validation_loss=loss) for step, loss in losses.items()]
    rules = {"keep_last": 2, "keep_every_steps": 100, "keep_best": 1}
    assert kept(candidates, **rules) == [100, 200, 300, 350, 400]
    # every 100 steps first, the oldest first; 100 is the best as well
    assert kept(candidates, bytes_to_free=1, **rules) == [100, 300, 350, 400]
    assert kept(candidates, bytes_to_free=SIZE + 1, **rules) == [100, 350, 400]
    assert kept(candidates, bytes_to_free=3 * SIZE, **rules) == [100, 400]
    assert kept(candidates, bytes_to_free=4 * SIZE, **rules) == [400]
    assert kept(candidates, bytes_to_free=10**9, **rules) == [400]
    given_up = decide(candidates, RetentionConfig.model_validate(rules), bytes_to_free=1)[1]
    assert given_up.reasons == ("the disk is above its mark: given up, though a multiple of 100 steps",)


def test_what_no_rule_keeps_goes_before_a_rule_gives_way() -> None:
    candidates = [whole(100), whole(150), whole(200)]
    assert kept(candidates, keep_every_steps=100, bytes_to_free=SIZE) == [100, 200]


def test_a_run_without_checkpoints_has_no_decisions() -> None:
    assert decide([], RetentionConfig()) == ()


def promised(candidates: Sequence[Candidate]) -> set[int]:
    """The promises once more, from their definitions."""
    verified = [one.step for one in candidates if one.is_whole]
    if not verified:
        return {one.step for one in candidates}
    held = {one.step for one in candidates if one.is_pinned or one.is_wanted_unproven or one.is_being_read}
    return held | {max(verified), max(one.step for one in candidates)}


def check_promises(candidates: Sequence[Candidate], config: RetentionConfig, bytes_to_free: int) -> None:
    decisions = decide(candidates, config, bytes_to_free=bytes_to_free)
    assert [one.step for one in decisions] == sorted(one.step for one in candidates)
    assert all(one.reasons for one in decisions)
    gone = {one.step for one in decisions if not one.is_kept}
    assert not gone & promised(candidates)


def test_the_promises_hold_for_every_state_of_three_checkpoints() -> None:
    flags = list(itertools.product((None, True, False), (True, False), (True, False), (True, False)))
    for states in itertools.product(flags[::2], flags[::3], flags):
        candidates = [
            Candidate(step, SIZE, None, state[0], state[1], state[2], state[3]) for step, state in enumerate(states)
        ]
        for bytes_to_free in (0, 10**9):
            check_promises(candidates, RetentionConfig(keep_last=1), bytes_to_free)


CANDIDATES = st.lists(
    st.builds(
        Candidate,
        step=st.integers(0, 60),
        size_bytes=st.integers(0, 1000),
        validation_loss=st.none() | st.floats(),
        is_whole=st.none() | st.booleans(),
        is_pinned=st.booleans(),
        is_wanted_unproven=st.booleans(),
        is_being_read=st.booleans(),
    ),
    max_size=12,
    unique_by=lambda one: one.step,
)
CONFIGS = st.builds(
    RetentionConfig,
    keep_last=st.integers(1, 5),
    keep_every_steps=st.none() | st.integers(1, 20),
    keep_best=st.integers(0, 4),
)


@given(CANDIDATES, CONFIGS, st.integers(0, 5000))
def test_the_promises_hold_for_random_sets(
    candidates: list[Candidate], config: RetentionConfig, bytes_to_free: int
) -> None:
    check_promises(candidates, config, bytes_to_free)


@given(CANDIDATES, CONFIGS)
def test_without_a_full_disk_the_rules_are_promises_too(candidates: list[Candidate], config: RetentionConfig) -> None:
    gone = {one.step for one in decide(candidates, config) if not one.is_kept}
    sound = sorted(one.step for one in candidates if one.is_whole is not False)
    assert not gone & set(sound[-config.keep_last :])
    if config.keep_every_steps:
        assert not gone & {step for step in sound if step % config.keep_every_steps == 0}


@given(CANDIDATES, CONFIGS, st.integers(0, 5000))
def test_more_to_free_never_keeps_more(
    candidates: list[Candidate], config: RetentionConfig, bytes_to_free: int
) -> None:
    def gone(wanted: int) -> set[int]:
        return {one.step for one in decide(candidates, config, bytes_to_free=wanted) if not one.is_kept}

    assert gone(0) <= gone(bytes_to_free) <= gone(bytes_to_free + 500)


@pytest.mark.parametrize("field", ["keep_last", "keep_every_steps"])
def test_a_rule_of_zero_is_refused(field: str) -> None:
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        RetentionConfig.model_validate({field: 0})

"""Who hangs, by signs of life written by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from launch.trainer.hang import diagnose
from launch.trainer.heartbeat import Sign


def sign(rank: int, **changes: Any) -> Sign:
    usual: dict[str, Any] = {
        "host": f"node-{rank}", "pid": 100 + rank, "written": 5, "beats": 70, "step": 7, "phase": "forward",
        "is_over_limit": True, "collective": "all_gather_into_tensor", "where": "launch/trainer/loop.py:100",
    }  # fmt: skip
    return Sign(rank=rank, **(usual | changes))


def written_anew(signs: dict[int, Sign | None], *, but: tuple[int, ...] = ()) -> dict[int, Sign | None]:
    return {rank: one if one is None or rank in but else replace(one, written=9) for rank, one in signs.items()}


def test_rank_whose_file_stands_still_is_named_with_its_process_and_where_the_others_wait() -> None:
    before: dict[int, Sign | None] = {rank: sign(rank) for rank in range(3)}
    hang = diagnose(before, written_anew(before, but=(1,)))
    assert hang.culprits == (1,)
    assert hang.text == (
        "rank gives no sign of life: 1 (process 101 on node-1, step 7, forward); "
        "ranks 0, 2 waiting in all_gather_into_tensor (step 7, forward)"
    )


def test_rank_that_never_wrote_is_silent_too() -> None:
    before: dict[int, Sign | None] = {0: sign(0), 1: None}
    hang = diagnose(before, written_anew(before))
    assert hang.culprits == (1,)
    assert "1 (never seen)" in hang.text


def test_file_of_an_earlier_attempt_is_silence() -> None:
    before: dict[int, Sign | None] = {0: sign(0), 1: sign(1, step=900, beats=9000)}
    hang = diagnose(before, written_anew(before, but=(1,)))
    assert (hang.culprits, hang.step) == ((1,), 7)


def test_rank_in_an_earlier_phase_is_named() -> None:
    late = sign(2, beats=69, phase="data", collective=None, where="launch/data/loader.py:171")
    before: dict[int, Sign | None] = {0: sign(0), 1: sign(1), 2: late}
    hang = diagnose(before, written_anew(before))
    assert hang.culprits == (2,)
    assert hang.text == (
        "rank 2 at launch/data/loader.py:171 (step 7, data) did not come on; "
        "ranks 0, 1 waiting in all_gather_into_tensor (step 7, forward)"
    )


def test_rank_that_waits_for_nobody_in_the_same_phase_is_named() -> None:
    busy = sign(0, collective=None, where="model/attention.py:50")
    before: dict[int, Sign | None] = {0: busy, 1: sign(1)}
    hang = diagnose(before, written_anew(before))
    assert hang.culprits == (0,)
    assert hang.text.startswith("rank 0 at model/attention.py:50 (step 7, forward) did not come to it; rank 1 waiting")


def test_ranks_that_all_wait_in_the_same_place_are_nobodys_fault() -> None:
    before: dict[int, Sign | None] = {0: sign(0), 1: sign(1)}
    hang = diagnose(before, written_anew(before))
    assert hang.culprits == ()
    assert hang.text.startswith("no rank is behind another; ranks 0, 1 waiting in")


def test_many_ranks_are_not_all_listed() -> None:
    before: dict[int, Sign | None] = {rank: sign(rank) for rank in range(512)}
    hang = diagnose(before, written_anew(before, but=tuple(range(256, 512))))
    assert len(hang.culprits) == 256
    assert "and 248 more" in hang.text
    assert len(hang.text) < 1000

"""Settings of what watches over a run, and the words for those that make no sense."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from launch.supervision_config import ProfileConfig, WatchdogConfig


@pytest.mark.parametrize(("steps", "expected"), [("10-12", (10, 12)), ("7", (7, 7)), (7, (7, 7)), (None, None)])
def test_steps_to_profile(steps: object, expected: tuple[int, int] | None) -> None:
    assert ProfileConfig(steps=steps).first_and_last == expected  # type: ignore[arg-type]


@pytest.mark.parametrize("steps", ["12-10", "0-3", "3-", "a", "1-2-3", ""])
def test_other_steps_are_refused(steps: str) -> None:
    with pytest.raises(ValidationError, match=f"got '{steps}', wanted the first and the last step to record, such as"):
        ProfileConfig(steps=steps)


def test_pause_shorter_than_a_step_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"pause_s=5\.0 is below floor_s=10\.0; a save takes longer than a step"):
        WatchdogConfig(floor_s=10, pause_s=5)

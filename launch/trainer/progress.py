"""The lines of a run that a person reads. Pure functions of numbers; no torch."""

from __future__ import annotations


def step_line(
    *,
    step: int,
    steps: int,
    loss: float,
    learning_rate: float,
    muon_learning_rate: float | None = None,
    grad_norm: float,
    tokens_per_second: float,
    mfu: float | None,
    seconds_left: float,
) -> str:
    """`step   20/700  loss 8.1234  lr 1.20e-03  grad norm 1.43  21,563 tokens/s  MFU n/a  2m 05s left`

    With Muon `lr 1.20e-03, Muon's 2.00e-02`.
    """
    rates = f"{learning_rate:.2e}" + ("" if muon_learning_rate is None else f", Muon's {muon_learning_rate:.2e}")
    share = "n/a" if mfu is None else f"{mfu:.1%}"
    return (
        f"step {step:>{len(str(steps))}}/{steps}  loss {loss:.4f}  lr {rates}  grad norm {grad_norm:.2f}  "
        f"{tokens_per_second:,.0f} tokens/s  MFU {share}  {duration(seconds_left)} left"
    )


def duration(seconds: float) -> str:
    """The two largest units: `2d 03h`, `5h 09m`, `2m 05s`, `7s`."""
    whole = max(0, round(seconds))
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d {hours:02}h"
    if hours:
        return f"{hours}h {minutes:02}m"
    return f"{minutes}m {rest:02}s" if minutes else f"{rest}s"

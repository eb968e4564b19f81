"""Numbers as people read them."""

from __future__ import annotations

MINUTE_S = 60
HOUR_S = 3600


def short_number(value: float) -> str:
    """Three digits and a unit of thousands: 950, 1.2K, 38M, 11T."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if value >= size:
            scaled = value / size
            return f"{scaled:.0f}{unit}" if scaled >= 100 or scaled == int(scaled) else f"{scaled:.3g}{unit}"
    return f"{value:.3g}"


def binary_number(value: int) -> str:
    """In units of 1,024 where there are any: 768, 1K, 1.5K, 2K, 1M."""
    for unit, size in (("G", 1 << 30), ("M", 1 << 20), ("K", 1 << 10)):
        if value >= size:
            return f"{value / size:g}{unit}"
    return str(value)


def share(part: float, whole: float) -> str:
    """Per cent, so that a little is not nothing and nearly all is not all."""
    if not whole or not part:
        return "0%"
    if part == whole:
        return "100%"
    fraction = part / whole
    if fraction < 0.0001:
        return "<0.01%"
    if fraction > 0.9999:
        return ">99.99%"
    return f"{100 * fraction:.2f}%" if fraction < 0.01 or fraction > 0.99 else f"{100 * fraction:.1f}%"


def duration(seconds: float) -> str:
    """In the two largest units that fit."""
    if seconds < MINUTE_S:
        return f"{seconds:.1f} s"
    if seconds < HOUR_S:
        return f"{int(seconds // MINUTE_S)} min {int(seconds % MINUTE_S):02d} s"
    return f"{int(seconds // HOUR_S):,} h {int(seconds % HOUR_S // MINUTE_S):02d} min"

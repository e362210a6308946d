"""Format radii, durations and sizes. Imports no torch, so that tables are printed quickly."""

from __future__ import annotations


def format_eps(eps: float) -> str:
    """Format a radius: '8/255' if it is a multiple of 1/255, else '0.5'."""
    times = eps * 255
    if 0 < eps < 0.2 and abs(times - round(times)) < 1e-9 * 255:
        return f"{round(times)}/255"
    return f"{eps:g}"


def format_duration(seconds: float) -> str:
    """Format a duration: '4.2 s', '3 min 05 s', '2 h 10 min', '3.4 days'."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes = round(seconds) // 60
    if minutes < 60:
        return f"{minutes} min {round(seconds) % 60:02d} s"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{seconds / 86400:.1f} days"


def format_bytes(count: float) -> str:
    """Format a number of bytes: '512 MiB', '3.21 GiB'."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"

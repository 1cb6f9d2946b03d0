"""How durations are measured: never below 0, whatever a machine's clock does."""

import time
from collections.abc import Mapping


def seconds_since(start: float) -> float:
    """Seconds since `time.perf_counter()` gave `start`, at least 0.

    The counter does not follow the date, but it goes back too where a machine is restored from a snapshot.
    """
    return max(0.0, time.perf_counter() - start)


def as_measured(seconds: Mapping[str, float]) -> dict[str, float]:
    """Seconds by stage; 0 for one below 0, as earlier versions have written where a clock went back."""
    return {stage: max(0.0, spent) for stage, spent in seconds.items()}

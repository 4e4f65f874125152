"""How often something is done that costs the more the more a node has."""

from __future__ import annotations

import time

MAX_S = 25.0  # what is looked at by a pace is found changed within half a minute
_SHARE = 30


class Pace:
    """Of a look that is taken again and again: it takes one part in thirty of the time, or is taken every MAX_S."""

    def __init__(self) -> None:
        self._next = 0.0

    def is_due(self) -> bool:
        """Whether enough time has passed since the last one."""
        return time.monotonic() >= self._next

    def note(self, began: float) -> None:
        """One that began then (monotonic) has just ended."""
        now = time.monotonic()
        self._next = now + min(_SHARE * (now - began), MAX_S)

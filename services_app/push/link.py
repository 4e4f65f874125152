"""The way to a node, as far as its session shows it: round trips, lost packets, and how far the node's clock is off.

A node with such a trouble is served all the same; a person is told, with a reason.
"""

import socket
import statistics
import struct
from collections import deque

Problem = dict[str, str]

SLOW_MS = 100.0
LOSSY_SHARE = 0.02
LOSSES_AT_LEAST = 3  # one lost packet says nothing
SKEW_S = 5.0
SAMPLES = 5  # answers whose median counts
WINDOW = 64  # answers over which losses are counted

_TCP_INFO_SIZE = 144
_TOTAL_RETRANS, _SEGS_OUT = 100, 136  # offsets in struct tcp_info (linux/tcp.h, the same since 4.6)


class Link:
    """What is known of one session's way; `note` after every answer."""

    def __init__(self, sock: socket.socket | None) -> None:
        """sock: the session's TCP connection; None when there is none to look at."""
        self._sock = sock
        self._round_trips_ms: deque[float] = deque(maxlen=SAMPLES)
        self._sent: deque[tuple[int, int]] = deque(maxlen=WINDOW)
        self._skew_s = 0.0

    def note(self, round_trip_ms: float, clock_off_s: float | None) -> None:
        """round_trip_ms: without the time the node worked. clock_off_s: the node's clock minus ours; None: not told."""
        self._round_trips_ms.append(round_trip_ms)
        if clock_off_s is not None:
            self._skew_s = clock_off_s
        if (counts := self._counts()) is not None:
            self._sent.append(counts)

    def problems(self) -> list[Problem]:
        """What a person should look at: SlowLink, LossyLink, ClockSkew; empty when all is well."""
        found = []
        slow_ms = statistics.median(self._round_trips_ms) if self._round_trips_ms else 0.0
        if len(self._round_trips_ms) == SAMPLES and slow_ms > SLOW_MS:
            found.append(
                _problem("SlowLink", f"an answer takes {slow_ms:.0f} ms on the way; changes arrive later here")
            )
        if len(self._sent) > 1:
            sent, lost = (self._sent[-1][i] - self._sent[0][i] for i in (0, 1))
            if lost >= LOSSES_AT_LEAST and lost > sent * LOSSY_SHARE:
                share = 100 * lost / max(sent, 1)
                found.append(_problem("LossyLink", f"{share:.0f} % of the packets sent to the node had to be repeated"))
        if abs(self._skew_s) > SKEW_S:
            ahead = "ahead of" if self._skew_s > 0 else "behind"
            text = f"the node's clock is {abs(self._skew_s):.0f} s {ahead} the control plane's: is its time service running?"
            found.append(_problem("ClockSkew", text))
        return found

    def _counts(self) -> tuple[int, int] | None:
        """(segments sent, segments sent again) of the connection so far."""
        if self._sock is None:
            return None
        try:
            info = self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_SIZE)
        except OSError:
            return None  # closed under us
        if len(info) < _TCP_INFO_SIZE:
            return None
        (lost,) = struct.unpack_from("=I", info, _TOTAL_RETRANS)
        (sent,) = struct.unpack_from("=I", info, _SEGS_OUT)
        return sent, lost


def _problem(reason: str, message: str) -> Problem:
    return {"reason": reason, "message": message}

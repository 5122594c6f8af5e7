"""The states of the conversation with one peer, as a table.

`docs/draw_states.py` draws the picture in `docs/protocol.md` from it.
"""

from __future__ import annotations

import enum
from typing import Final


class State(enum.Enum):
    """Where the conversation with a peer stands."""

    OPEN = "open"
    """Both sides may send."""
    CLOSING = "closing"
    """We sent FIN, and wait until everything is acked and the peer has answered."""
    PEER_CLOSED = "peer closed"
    """The peer sent FIN: neither side sends anything more."""
    CLOSED = "closed"
    """Both sides are done. Final."""
    FAILED = "failed"
    """The peer aborted, was lost, restarted or broke the protocol; or we aborted. Final."""


class Event(enum.Enum):
    """What can happen to a conversation."""

    TRAFFIC = "data, ack, probe, heartbeat"
    CLOSE = "we close"
    FIN = "peer's FIN"
    FIN_ANSWER = "FIN answered, all acked"
    ABORT = "ABORT, from either side"
    RESTART = "HELLO of another run"
    SILENCE = "nothing heard for peer_timeout"
    VIOLATION = "peer sent what it may not"


TABLE: Final[dict[State, dict[Event, State]]] = {
    State.OPEN: {
        Event.TRAFFIC: State.OPEN,
        Event.CLOSE: State.CLOSING,
        Event.FIN: State.PEER_CLOSED,
        Event.FIN_ANSWER: State.OPEN,
        Event.ABORT: State.FAILED,
        Event.RESTART: State.FAILED,
        Event.SILENCE: State.FAILED,
        Event.VIOLATION: State.FAILED,
    },
    State.CLOSING: {
        Event.TRAFFIC: State.CLOSING,
        Event.CLOSE: State.CLOSING,
        Event.FIN: State.CLOSED,
        Event.FIN_ANSWER: State.CLOSED,
        Event.ABORT: State.FAILED,
        Event.RESTART: State.CLOSED,
        Event.SILENCE: State.FAILED,
        Event.VIOLATION: State.FAILED,
    },
    State.PEER_CLOSED: {
        Event.TRAFFIC: State.PEER_CLOSED,
        Event.CLOSE: State.CLOSED,
        Event.FIN: State.PEER_CLOSED,
        Event.FIN_ANSWER: State.PEER_CLOSED,
        Event.ABORT: State.FAILED,
        Event.RESTART: State.PEER_CLOSED,
        Event.SILENCE: State.PEER_CLOSED,
        Event.VIOLATION: State.FAILED,
    },
    State.CLOSED: dict.fromkeys(Event, State.CLOSED),
    State.FAILED: dict.fromkeys(Event, State.FAILED),
}
"""``TABLE[state][event]`` is the next state. Every pair has an entry."""

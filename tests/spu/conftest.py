"""What runs on a device is tested in the same places as a session."""

from __future__ import annotations

from tests.session.conftest import memory, stage

__all__ = ["memory", "stage"]

"""What a worker of pytest-xdist says of a test that takes too long, before it ends itself."""

from __future__ import annotations

import faulthandler
import os
import threading
from typing import Any

import pytest


class SayWhereItHangs:
    """Times tests as pytest-timeout does, whose own words a worker writes to /dev/null."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_timeout_set_timer(self, item: Any, settings: Any) -> bool:
        timer = threading.Timer(settings.timeout, _end, (item, settings.timeout))
        timer.daemon = True
        timer.start()

        def cancel() -> None:
            timer.cancel()
            timer.join()

        item.cancel_timeout = cancel
        return True


def _end(item: pytest.Item, seconds: float) -> None:
    try:
        item.config.pluginmanager.getplugin("capturemanager").suspend_global_capture(item)
        os.write(2, f"\n{item.nodeid} took over {seconds:g} s; its threads:\n".encode())
        faulthandler.dump_traceback(2)
    finally:
        os._exit(1)

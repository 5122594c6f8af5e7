"""A shell that a person types into: directory and variables stay from block to block."""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

TIMEOUT: Final = 120.0


class Terminal:
    """bash in a directory; it ends at the first command that fails."""

    def __init__(self, directory: Path, env: Mapping[str, str]) -> None:
        self._end = f"-- {secrets.token_hex(8)} --"
        self._process = subprocess.Popen(
            ["bash", "-eu"],
            cwd=directory,
            env=dict(env),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def start(self, block: str) -> None:
        """Type a block of commands, whose standard input is empty."""
        assert self._process.stdin is not None
        typed = f"eval {_quote(block)} </dev/null\necho {_quote(self._end)}\n"
        self._process.stdin.write(typed.encode())
        self._process.stdin.flush()

    def wait(self) -> str:
        """What the block printed, on either stream."""
        return self.read_until(f"{self._end}\n").removesuffix(f"{self._end}\n")

    def read_until(self, text: str, timeout: float = TIMEOUT) -> str:
        """What it prints until it has printed this."""
        assert self._process.stdout is not None
        said = b""
        deadline = time.monotonic() + timeout
        while text.encode() not in said:
            remaining = deadline - time.monotonic()
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, remaining))
            read = os.read(self._process.stdout.fileno(), 1 << 16) if ready else b""
            assert ready, f"not over after {timeout:.0f} s:\n{said.decode()}"
            assert read, f"a command failed:\n{said.decode()}"
            said += read
        return said.decode()

    def type(self, block: str) -> str:
        """Type a block and wait for its end."""
        self.start(block)
        return self.wait()

    def close(self) -> None:
        """End the shell, and what it still runs."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()


@contextlib.contextmanager
def terminals(
    directory: Path, names: tuple[str, ...], env: Mapping[str, str]
) -> Iterator[dict[str, Terminal]]:
    """A terminal for each name, closed in the end."""
    with contextlib.ExitStack() as stack:
        opened = {}
        for name in names:
            opened[name] = Terminal(directory, env)
            stack.callback(opened[name].close)
        yield opened


def _quote(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"

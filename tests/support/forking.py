"""The command ``redislink`` in a process that is forked from one which has imported it already.

To import takes a short command nearly all of its time. The process is otherwise one of its own:
arguments, directory, environment, streams, signals and exit code are as under ``python -m
redislink``. JAX is imported before the fork, SPU is not: its threads would not survive it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from multiprocessing import reduction
from pathlib import Path
from typing import IO, Any, Final

from redislink.cli.parties import PartyProcess

_PRELOADED: Final = [
    __name__,
    "redislink.cli",
    "redislink.transport.endpoint",
    "redislink.broker.embedded",
    "redislink.jobs.agent",
    "redislink.jobs.client",
    "jax",
    "jax.numpy",
]
_SERVER: Final = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(_PRELOADED)


class ForkedCommand(subprocess.Popen[str]):
    """``redislink WORDS``; to be used as the Popen that it is."""

    def __init__(
        self,
        words: Sequence[str],
        *,
        cwd: Path,
        env: dict[str, str],
        stdout: int | IO[bytes] = subprocess.PIPE,
        stderr: int = subprocess.PIPE,
        forks_parties: bool = False,
    ) -> None:
        """Args as `subprocess.Popen` has them, and whether the parties that the command starts are
        forked from it: with what it has imported."""
        self._forks_parties = forks_parties
        super().__init__(
            list(words),
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            text=True,
        )

    # What Popen does by fork and waitpid is the fork server's: the process is its child.

    def _execute_child(
        self, args: list[str], executable: Any, preexec_fn: Any, close_fds: Any, pass_fds: Any,
        cwd: Path, env: dict[str, str], *more: Any,
    ) -> None:  # fmt: skip
        ends = more[3:9]  # reading and writing end, of stdin, of stdout and of stderr
        streams = [_Descriptor(ends[place]) for place in (0, 3, 5)]
        self._process = self._make(args, str(cwd), env, streams)
        try:
            self._process.start()
            self.pid = self._process.pid or 0
            self._child_created = True
        finally:
            self._close_pipe_fds(*ends)

    def _make(self, *arguments: Any) -> Any:
        # Daemonic processes may not have children.
        target, daemon = (_run_forking, False) if self._forks_parties else (_run, True)
        return _SERVER.Process(target=target, args=arguments, daemon=daemon)

    def _internal_poll(self, *_: Any, **__: Any) -> int | None:
        if self.returncode is None:
            self.returncode = self._process.exitcode
        return self.returncode

    def _wait(self, timeout: float | None) -> int:
        self._process.join(timeout)
        code = self._internal_poll()
        if code is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return code


class _ForkedChild(ForkedCommand):
    """Forked from this process and its child."""

    def _make(self, *arguments: Any) -> Any:
        return multiprocessing.get_context("fork").Process(target=_run_child, args=arguments)


class ForkedParty(PartyProcess):
    """`PartyProcess` by a `ForkedCommand`."""

    _command: type[ForkedCommand] = ForkedCommand

    def _start(
        self, words: list[str], environment: dict[str, str], output: IO[bytes]
    ) -> subprocess.Popen[Any]:
        return self._command(
            words, cwd=Path.cwd(), env=environment, stdout=output, stderr=subprocess.STDOUT
        )


class _ChildParty(ForkedParty):
    _command = _ForkedChild


class _Descriptor:
    """A file descriptor that is handed over with the arguments."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __getstate__(self) -> Any:
        return {"over": reduction.DupFd(self.number)}

    def __setstate__(self, state: Any) -> None:
        self.number = state["over"].detach()


def _run(words: list[str], cwd: str, env: dict[str, str], streams: list[_Descriptor]) -> None:
    for number, stream in enumerate(streams):
        os.dup2(stream.number, number)
    for number in {stream.number for stream in streams}:
        os.close(number)
    out, err = (os.fdopen(n, "w", encoding="utf-8", closefd=False) for n in (1, 2))
    err.reconfigure(line_buffering=True, errors="backslashreplace")
    sys.stdout = sys.__stdout__ = out
    sys.stderr = sys.__stderr__ = err
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.path.insert(0, cwd)
    sys.argv = ["redislink", *words]

    from redislink.cli import main

    main()


def _run_forking(*arguments: Any) -> None:
    from redislink.cli import demo

    demo.PartyProcess = _ChildParty  # type: ignore[misc]
    _run(*arguments)


def _run_child(*arguments: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _run(*arguments)

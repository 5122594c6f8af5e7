"""A trial: all parties on one machine, with keys and a broker made for it.

Rules:
- The parties' names are the program's; nobody knows them before it says them. So the key of each
  is derived from one secret in the trial's directory: any process of the trial has all keys, and
  none of them has to wait for another.
- Processes that name the same directory are one trial. A lock on a file in it says who runs the
  broker, and another one who still takes part: locks end with their process, however it ends.
- Between organisations no machine ever holds two parties' keys: nothing here is for that.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from redislink.cluster import ClusterSpec
from redislink.errors import ConfigError
from redislink.files import replacing
from redislink.identity.keypair import (
    KEY_BYTES,
    Identity,
    format_public_key,
    read_secret,
    write_secret,
)
from redislink.identity.secret_files import read_private

_WHAT: Final = "file of a trial's keys"
_FILE: Final = "trial.key"
_LONGEST_NAME: Final = 40
_START_TIMEOUT: Final = 20.0
"""Seconds that whoever begins a trial has to start its broker."""
_POLL: Final = 0.02


class Trial:
    """The keys and names of a trial's parties."""

    def __init__(self, directory: Path) -> None:
        """Args:
        directory: of a trial that has begun.

        Raises:
            ConfigError: it is no such directory.
        """
        self._secret = read_secret(directory / _FILE, _WHAT)
        self._session = f"trial-{self._derive(b'session', 4).hex()}"

    def identity(self, party: str) -> Identity:
        """The key pair of a party."""
        return Identity(self._derive(f"party {party}".encode(), KEY_BYTES))

    def _derive(self, what: bytes, size: int) -> bytes:
        return HKDF(SHA256(), size, None, b"redislink trial: " + what).derive(self._secret)

    def cluster(self, parties: Sequence[str]) -> ClusterSpec:
        """A cluster of these parties."""
        named = [
            {"name": party, "public_key": format_public_key(self.identity(party).public_key)}
            for party in parties
        ]
        return ClusterSpec.parse({"session": self._session, "parties": named}, "trial")


def party_called(name: str) -> str:
    """The name of the party that a program calls so: the same, if it may be one of ours."""
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", name, re.ASCII):
        return name
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-_.")[:_LONGEST_NAME]
    digest = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:8]
    return f"{plain}-{digest}" if plain else f"party-{digest}"


@contextlib.contextmanager
def take_part(directory: Path | None = None) -> Iterator[dict[str, str]]:
    """Take part in a trial; whoever begins it makes its keys and runs its broker.

    Whoever began it waits at the end until all others have left.

    Args:
        directory: that all processes of the trial name; made if it is not there. None: a trial for
            this process and those that it starts.

    Yields:
        The variables that make a process take part.

    Raises:
        ConfigError: the directory cannot be used, or its trial does not begin.
    """
    with contextlib.ExitStack() as stack:
        if directory is None:
            directory = stack.enter_context(_own_directory())
        place = _Place(directory.absolute(), stack)
        if place.begun_here:
            place.host(stack)
        yield place.variables()


class _Place:
    """The directory of a trial, as one of its processes sees it."""

    def __init__(self, directory: Path, stack: contextlib.ExitStack) -> None:
        self._directory = directory
        self._url_file = directory / "broker.url"
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._members = stack.enter_context(_opened(directory / "members"))
            host = stack.enter_context(_opened(directory / "host"))
        except OSError as error:
            raise ConfigError(
                f"trial directory {directory}: {error.strerror}: name a new one"
            ) from None
        self.begun_here = _locked(host, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not self.begun_here:
            fcntl.flock(self._members, fcntl.LOCK_SH)

    def host(self, stack: contextlib.ExitStack) -> None:
        """Make keys and a broker, and at the end wait for the others."""
        from redislink.broker import EmbeddedBroker  # loads the server binary's package

        for left in (self._url_file, self._directory / _FILE):  # by one that was killed
            left.unlink(missing_ok=True)
        broker = stack.enter_context(EmbeddedBroker(password=secrets.token_urlsafe(32)))
        stack.callback(_unless_child(self._end))
        secret = secrets.token_bytes(KEY_BYTES)
        write_secret(self._directory / _FILE, secret, "all keys of a trial: for trials only", _WHAT)
        with replacing(self._url_file) as file:
            file.write(broker.unix_url)

    def variables(self) -> dict[str, str]:
        """Of the environment."""
        deadline = time.monotonic() + _START_TIMEOUT
        while not self._url_file.exists():
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"trial directory {self._directory}: whoever began the trial has not started "
                    "its broker: end that process, or name a new directory"
                )
            time.sleep(_POLL)
        return {
            "REDISLINK_TRIAL_DIR": str(self._directory),
            "REDISLINK_BROKER_URL": read_private(self._url_file, "broker's URL", "begin again"),
            "REDISLINK_BROKER_PROXY": "none",
            "REDISLINK_PSK_DIR": str(self._directory),  # holds none
        }

    def _end(self) -> None:
        fcntl.flock(self._members, fcntl.LOCK_EX)
        for file in (self._url_file, self._directory / _FILE):
            file.unlink(missing_ok=True)


@contextlib.contextmanager
def _own_directory() -> Iterator[Path]:
    directory = tempfile.mkdtemp(prefix="redislink-trial-")
    with contextlib.ExitStack() as stack:
        stack.callback(_unless_child(lambda: shutil.rmtree(directory, ignore_errors=True)))
        yield Path(directory)


def _unless_child(work: Callable[[], None]) -> Callable[[], None]:
    """``work``, but nothing in a process that was forked from this one."""
    process = os.getpid()
    return lambda: work() if os.getpid() == process else None


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _locked(descriptor: int, how: int) -> bool:
    try:
        fcntl.flock(descriptor, how)
    except BlockingIOError:
        return False
    return True

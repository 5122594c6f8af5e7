"""A driver's jobs on its disk: one file each, which several processes of the driver share.

Rules:
- A file is there before anybody is told of its job, and whoever reads one finds all of it.
- A change reads the file and writes it under one lock, so no process undoes another's.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from redislink.errors import ConfigError
from redislink.files import read_text, replacing
from redislink.jobs.driver import DriverJob
from redislink.jobs.offer import check_job_id

_SUFFIX: Final = ".json"
_LOCK: Final = ".lock"
_MODE: Final = 0o700
_Seen = tuple[int, int, int]


class Drawer:
    """The jobs of one driver in one cluster."""

    def __init__(self, directory: Path, session: str, driver: str) -> None:
        """Args:
            directory: for all drivers and clusters; made if it is missing.
            session: the cluster's session.
            driver: the driver's name.

        Raises:
            ConfigError: the directory cannot be made or used.
        """
        self._directory = directory.expanduser() / session / driver
        self._read: dict[str, tuple[_Seen, DriverJob]] = {}
        with self._explained():
            self._directory.mkdir(_MODE, parents=True, exist_ok=True)
            os.close(os.open(self._directory / _LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))

    def jobs(self) -> dict[str, DriverJob]:
        """Return all jobs by id, the oldest offer first. Do not change them: see `change`.

        Raises:
            ConfigError: a file cannot be read, or holds no job.
        """
        found = {}
        with self._explained():
            for path in self._directory.glob(f"j*{_SUFFIX}"):
                try:
                    status = path.stat()
                except FileNotFoundError:
                    continue
                seen = (status.st_ino, status.st_mtime_ns, status.st_size)
                name = path.name.removesuffix(_SUFFIX)
                known = self._read.get(name)
                if known is None or known[0] != seen:
                    known = self._read[name] = (seen, self._load(path))
                found[name] = known[1]
        return dict(sorted(found.items(), key=lambda each: (each[1].offer.issued, each[0])))

    def add(self, job: DriverJob) -> None:
        """Keep a new job.

        Raises:
            ConfigError: there is one with its id, or the file cannot be written.
        """
        path = self._path(job.offer.job)
        with self._explained(), self._locked():
            if path.exists():
                raise ConfigError(f"job {job.offer.job}: is there already: take another id")
            self._write(path, job)

    def change(self, name: str, change: Callable[[DriverJob], bool]) -> bool:
        """Change a job, if ``change`` returns that it has; return what it returns.

        Raises:
            ConfigError: there is no such job, or its file cannot be read or written.
        """
        path = self._path(name)
        with self._explained(), self._locked():
            if not path.exists():
                raise ConfigError(f"job {name}: is not known in {self._directory}: check its id")
            job = self._load(path)
            if not change(job):
                return False
            self._write(path, job)
        return True

    def remove(self, name: str) -> None:
        """Forget a job.

        Raises:
            ConfigError: its file cannot be removed.
        """
        with self._explained(), self._locked():
            self._path(name).unlink(missing_ok=True)
        self._read.pop(name, None)

    def _path(self, name: str) -> Path:
        return self._directory / f"{check_job_id(name)}{_SUFFIX}"

    def _load(self, path: Path) -> DriverJob:
        try:
            return DriverJob.from_value(json.loads(read_text(path)))
        except (ConfigError, ValueError) as error:
            raise ConfigError(
                f"{path}: holds no job of a driver ({error}): move it away, and ask the agents "
                "with redislink jobs list"
            ) from None

    def _write(self, path: Path, job: DriverJob) -> None:
        with replacing(path, durable=True) as file:
            json.dump(job.to_value(), file)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(self._directory / _LOCK, flags, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ConfigError(
                f"directory of jobs {self._directory}: {error.strerror or error}: give another one "
                "with --jobs-dir or REDISLINK_JOBS_DIR"
            ) from None

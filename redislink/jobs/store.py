"""The directory in which an agent keeps programs, and which of them a person has approved.

::

    DIR/<64 hex digits>/        the files of the program with this digest
    DIR/<64 hex digits>.json    its name; when and by whom it was added, and approved

Rules:
- Nobody but its owner, who is this user or root, may write to the directory: who can write here
  can approve. What root adds for another user's agent belongs to that user.
- What is loaded is what the digest says: it is computed anew from the bytes that are returned.
- A program without its ``.json`` is not there. Both appear whole or not at all.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, ValidationError

from redislink.errors import ConfigError
from redislink.files import read_text, replacing
from redislink.jobs.offer import check_digest
from redislink.jobs.program import Program
from redislink.protocol.list_names import check_name
from redislink.text import one_line

_PREFIX: Final = "sha256:"
_META: Final = re.compile(r"[0-9a-f]{64}\.json", re.ASCII)
_BEGINNING: Final = re.compile(r"[0-9a-f]{6,64}", re.ASCII)
_MOST_META: Final = 4096
_MOST_WHO: Final = 200
_OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH


class Entry(BaseModel):
    """What is known of a program in the store.

    Attributes:
        digest: ``sha256:`` and 64 hex digits.
        name: its name here, which rules of the policy use; several versions may share one.
        added: when it was added, in UTC seconds since 1970.
        added_by: who added it.
        approved: when a person approved it, in UTC seconds since 1970; None if nobody has.
        approved_by: who approved it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)
    digest: str
    name: str
    added: float
    added_by: str
    approved: float | None = None
    approved_by: str | None = None


class ProgramStore:
    """The programs that an agent has.

    Every call reads the directory anew: the agent and the commands may use it at the same time.
    """

    def __init__(self, directory: str | Path) -> None:
        """Args:
        directory: where the programs are; it is made when the first one is added.
        """
        self.directory = Path(directory)

    def add(self, program: Program, name: str, *, by: str, now: float, approved: bool) -> Entry:
        """Add a program, or approve one that is there.

        Args:
            program: the program.
            name: its name.
            by: who adds it.
            now: the time, in UTC seconds since 1970.
            approved: whether ``by`` also approves it.

        Raises:
            ConfigError: it is there with another name, or cannot be written.
        """
        check_name(name, "program")
        there = self.find(program.digest)
        if there is not None:
            if there.name != name:
                raise ConfigError(
                    f"program {program.digest} is there as {there.name}: use that name, or remove "
                    "it first"
                )
            self.load(there.digest)
            return self.approve(there.digest, by=by, now=now) if approved else there
        entry = Entry(digest=program.digest, name=name, added=now, added_by=by[:_MOST_WHO])
        with self._changing():
            self._make_directory()
            self._remove_files(program.digest)  # what an attempt that was cut off has left
            passing = self.directory / f".adding-{secrets.token_hex(8)}"
            try:
                program.write_to(passing)
                for path in (passing, *passing.rglob("*")):
                    self._hand_over(path)
                passing.rename(self._files(program.digest))
            except BaseException:
                shutil.rmtree(passing, ignore_errors=True)
                raise
            self._write(entry)
        return self.approve(entry.digest, by=by, now=now) if approved else entry

    def entries(self) -> list[Entry]:
        """What is there, by name, the oldest of each name first.

        Raises:
            ConfigError: the directory cannot be read, or others may write to it.
        """
        with self._reading():
            self._check_owner()
            found = [p for p in self.directory.iterdir() if _META.fullmatch(p.name)]
            entries = [self._read(path) for path in found]
        return sorted(entries, key=lambda entry: (entry.name, entry.added, entry.digest))

    def find(self, digest: str) -> Entry | None:
        """The entry of the program with this digest; None if it is not there.

        Raises:
            ConfigError: the directory cannot be read, or others may write to it.
        """
        path = self._meta(check_digest(digest))
        with self._reading():
            if not self.directory.is_dir() or not path.exists():
                return None
            self._check_owner()
            return self._read(path)

    def resolve(self, text: str) -> Entry:
        """The only entry with this name, this digest or this beginning of a digest.

        Raises:
            ConfigError: there is none, or more than one; the message lists them.
        """
        entries = self.entries()
        beginning = text.removeprefix(_PREFIX)
        found = [e for e in entries if e.name == text]
        if not found and _BEGINNING.fullmatch(beginning):
            found = [e for e in entries if e.digest.removeprefix(_PREFIX).startswith(beginning)]
        if len(found) == 1:
            return found[0]
        shown = one_line(text, 80)
        if found:
            digests = ", ".join(e.digest[: len(_PREFIX) + 12] for e in found)
            raise ConfigError(
                f"program {shown!r}: there are {len(found)} versions: give the digest of one, or "
                f"its beginning: {digests}"
            )
        names = ", ".join(sorted({e.name for e in entries})) or "no programs"
        raise ConfigError(f"program {shown!r}: is not in {self.directory}: it has {names}")

    def last_approved(self, name: str, *, other_than: str = "") -> Entry | None:
        """The version with this name that was approved last; None if there is none.

        Args:
            name: the name.
            other_than: a digest to leave out.
        """
        approved = [e for e in self.entries() if e.approved is not None and e.name == name]
        return max(
            (e for e in approved if e.digest != other_than),
            key=lambda entry: entry.approved or 0,
            default=None,
        )

    def load(self, digest: str) -> Program:
        """Read a program, and check that what was read has this digest.

        Raises:
            ConfigError: it is not there, or was changed.
        """
        place = self._files(check_digest(digest))
        if self.find(digest) is None:
            raise ConfigError(f"program {digest}: is not in {self.directory}: add it first")
        program = Program.read(place)
        if program.digest != digest:
            raise ConfigError(
                f"program {place}: was changed after it was added, and is now {program.digest}: "
                "find out by whom, then remove it and add it again"
            )
        return program

    def approve(self, digest: str, *, by: str, now: float) -> Entry:
        """Note that a person approves a program.

        Raises:
            ConfigError: it is not there, or was changed.
        """
        self.load(digest)
        there = self.find(digest)
        if there is None:
            raise ConfigError(f"program {digest}: is not in {self.directory}: add it first")
        if there.approved is not None:
            return there
        entry = there.model_copy(update={"approved": now, "approved_by": by[:_MOST_WHO]})
        with self._changing():
            self._write(entry)
        return entry

    def remove(self, digest: str) -> None:
        """Remove a program; what runs already goes on.

        Raises:
            ConfigError: it is not there, or cannot be removed.
        """
        if self.find(digest) is None:
            raise ConfigError(f"program {digest}: is not in {self.directory}")
        with self._changing():
            self._meta(digest).unlink()
            self._remove_files(digest)

    def _files(self, digest: str) -> Path:
        return self.directory / digest.removeprefix(_PREFIX)

    def _meta(self, digest: str) -> Path:
        return self.directory / f"{digest.removeprefix(_PREFIX)}.json"

    def _remove_files(self, digest: str) -> None:
        place = self._files(digest)
        if place.exists():
            shutil.rmtree(place)

    def _make_directory(self) -> None:
        if not self.directory.is_dir():
            self.directory.mkdir(0o700, parents=True)
        self._check_owner()

    def _check_owner(self) -> None:
        found = self.directory.stat()
        is_ours = os.geteuid() == 0 or found.st_uid in (0, os.geteuid())
        if not is_ours or found.st_mode & _OTHERS_WRITE:
            raise ConfigError(
                f"directory {self.directory}: others may write to it, and so approve programs: "
                "check what is in it, then run chmod go-w on it, as its owner"
            )

    def _read(self, path: Path) -> Entry:
        try:
            entry = Entry.model_validate_json(read_text(path, _MOST_META))
            check_name(entry.name, "program")
        except (ValidationError, UnicodeDecodeError, ConfigError):
            entry = None
        if entry is None or entry.digest != f"{_PREFIX}{path.stem}":
            raise ConfigError(
                f"{path}: is not what redislink wrote: remove it and the directory {path.stem}, "
                "then add the program again"
            )
        return entry

    def _write(self, entry: Entry) -> None:
        with replacing(self._meta(entry.digest), durable=True) as file:
            file.write(entry.model_dump_json(indent=1) + "\n")
        self._hand_over(self._meta(entry.digest))

    def _hand_over(self, path: Path) -> None:
        """Let the directory's owner have what root writes there: the agent runs as that user."""
        owner = self.directory.stat()
        if os.geteuid() == 0 and owner.st_uid != 0:
            os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ConfigError(
                f"directory {self.directory}: {error.strerror or error}: check the path given with "
                "--programs"
            ) from None

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ConfigError(
                f"directory {self.directory}: cannot be changed ({error.strerror or error}): run "
                "this as its owner"
            ) from None

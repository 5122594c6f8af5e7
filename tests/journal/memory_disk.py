"""A disk in memory that knows what was synced, and can crash, fail or lose power at any request.

What power leaves of what was not synced is the worst that file systems do: nothing, a prefix, a
prefix and a torn part, holes of zeros or of garbage, and each name that was made, given or removed
by itself or not.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

Injection = Callable[[str], None]
"""Is told of each request before it happens, and may raise instead."""


class Crash(BaseException):
    """The process is gone: nothing that it still tries happens."""


@dataclass(eq=False)
class Node:
    data: bytearray = field(default_factory=bytearray)
    durable: bytes = b""
    pending: list[bytes | int] = field(default_factory=list)
    """Since it was synced: bytes were appended, or it was cut to a length."""
    locked: bool = False

    def settle(self, rng: random.Random) -> None:
        data = bytearray(self.durable)
        mode = rng.choice(("nothing", "prefix", "zeros", "garbage", "all"))
        count = {"nothing": 0, "prefix": rng.randint(0, len(self.pending))}.get(mode)
        for change in self.pending[:count]:
            if isinstance(change, int):
                del data[change:]
            elif mode in ("zeros", "garbage") and rng.random() < 0.5:
                start = rng.randint(0, len(change))
                hole = rng.randint(0, len(change) - start)
                filled = rng.randbytes(hole) if mode == "garbage" else bytes(hole)
                data += change[:start] + filled + change[start + hole :]
            else:
                data += change
        if mode == "prefix" and count is not None and count < len(self.pending):
            torn = self.pending[count]
            if not isinstance(torn, int):
                data += torn[: rng.randint(0, len(torn))]
        self.data, self.durable, self.pending = data, bytes(data), []


@dataclass(eq=False)
class Folder:
    names: dict[str, Node | Folder] = field(default_factory=dict)
    durable: dict[str, Node | Folder] = field(default_factory=dict)
    pending: list[tuple[str | None, str | None, Node | Folder]] = field(default_factory=list)
    """Since it was synced: what lost the first name and got the second one."""

    def change(self, old: str | None, new: str | None, node: Node | Folder) -> None:
        self.pending.append((old, new, node))
        self._apply(self.names, old, new, node)

    @staticmethod
    def _apply(
        names: dict[str, Node | Folder], old: str | None, new: str | None, node: Node | Folder
    ) -> None:
        if old is not None and names.get(old) is node:
            del names[old]
        if new is not None:
            names[new] = node

    def sync(self) -> None:
        self.durable, self.pending = dict(self.names), []

    def settle(self, rng: random.Random) -> None:
        chance = rng.choice((0.0, 0.5, 1.0))
        names = dict(self.durable)
        for old, new, node in self.pending:
            if rng.random() < chance:
                self._apply(names, old, new, node)
        self.names = names
        self.sync()
        for node in names.values():
            node.settle(rng)


class MemoryFile:
    def __init__(self, disk: MemoryDisk, node: Node) -> None:
        self._disk, self._node, self._start = disk, node, disk.starts
        self._holds = False

    def _reach(self, request: str) -> None:
        if self._start != self._disk.starts:
            raise Crash
        self._disk.reach(request)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        written = bytes(data)
        try:
            self._reach("write")
        except BaseException:
            if self._start == self._disk.starts:
                self._append(written[: self._disk.rng.randint(0, len(written))])
            raise
        self._append(written)

    def _append(self, data: bytes) -> None:
        self._node.data += data
        self._node.pending.append(data)

    def read(self, size: int, offset: int) -> bytes:
        return bytes(self._node.data[offset : offset + size])

    def size(self) -> int:
        return len(self._node.data)

    def sync(self) -> None:
        self._reach("sync")
        self._node.durable, self._node.pending = bytes(self._node.data), []

    def truncate(self, size: int) -> None:
        self._reach("truncate")
        del self._node.data[size:]
        self._node.pending.append(size)

    def hold(self) -> None:
        self._node.locked = self._holds = True

    def close(self) -> None:
        if self._holds and self._start == self._disk.starts:
            self._node.locked = self._holds = False


class MemoryDisk:
    """Implements `redislink.journal.disk.Disk`."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.root = Folder()
        self.starts = 0
        self.requests: list[str] = []
        self.inject: Injection = lambda request: None

    def reach(self, request: str) -> None:
        self.requests.append(request)
        self.inject(request)

    def restart(self, *, power_lost: bool) -> None:
        """After a crash: no process has a file open; without power, what was not synced may go."""
        self.starts += 1
        self.requests.clear()
        if power_lost:
            self.root.settle(self.rng)
        self._unlock(self.root)

    def _unlock(self, folder: Folder) -> None:
        for node in folder.names.values():
            if isinstance(node, Folder):
                self._unlock(node)
            else:
                node.locked = False

    def _find(self, path: Path) -> Node | Folder | None:
        here: Node | Folder | None = self.root
        for part in path.parts[1:]:
            if not isinstance(here, Folder):
                return None
            here = here.names.get(part)
        return here

    def _folder(self, path: Path) -> Folder:
        found = self._find(path)
        if not isinstance(found, Folder):
            raise FileNotFoundError(errno.ENOENT, "No such file or directory")
        return found

    def node(self, path: Path) -> Node:
        found = self._find(path)
        if not isinstance(found, Node):
            raise FileNotFoundError(errno.ENOENT, "No such file or directory")
        return found

    def status(self, path: Path) -> os.stat_result | None:
        found = self._find(path)
        if found is None:
            return None
        mode = stat.S_IFDIR | 0o700 if isinstance(found, Folder) else stat.S_IFREG | 0o600
        return os.stat_result((mode, id(found), 0, 1, os.geteuid(), os.getegid(), 0, 0, 0, 0))

    def names(self, directory: Path) -> list[str]:
        return sorted(self._folder(directory).names)

    def make_directory(self, path: Path) -> None:
        self.reach("make_directory")
        self._folder(path.parent).change(None, path.name, Folder())

    def remove_directory(self, path: Path) -> None:
        self.reach("remove_directory")
        assert not self._folder(path).names
        self._folder(path.parent).change(path.name, None, self._folder(path))

    def sync_directory(self, path: Path) -> None:
        self.reach("sync_directory")
        self._folder(path).sync()

    def create(self, path: Path) -> MemoryFile:
        self.reach("create")
        folder = self._folder(path.parent)
        if path.name in folder.names:
            raise FileExistsError(errno.EEXIST, "File exists")
        node = Node()
        folder.change(None, path.name, node)
        return MemoryFile(self, node)

    def open(self, path: Path) -> MemoryFile:
        return MemoryFile(self, self.node(path))

    def rename(self, path: Path, to: Path) -> None:
        self.reach("rename")
        found = self._find(path)
        assert found is not None
        assert path.parent == to.parent
        self._folder(path.parent).change(path.name, to.name, found)

    def unlink(self, path: Path) -> None:
        self.reach("unlink")
        self._folder(path.parent).change(path.name, None, self.node(path))

    def lock(self, path: Path, note: str) -> MemoryFile:
        if self._find(path) is None:
            self._folder(path.parent).change(None, path.name, Node())
        node = self.node(path)
        if node.locked:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        file = MemoryFile(self, node)
        file.hold()
        with contextlib.suppress(OSError):
            file.truncate(0)
            file.write(note.encode())
        return file

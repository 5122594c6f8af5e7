"""Programs: code that is named by its SHA-256.

Rules:
- A program's digest is that of its packed form, which lists each file's path and bytes in order.
  A program has only one packed form, so equal digests mean equal programs.
- `Program.unpack_untrusted` raises `ValueDecodeError` and nothing else. No path climbs, is hidden,
  has a character outside ``A-Z a-z 0-9 _ . + -``, or differs from another one in case alone. There
  are no links and no modes.
- What a person reads is what Python runs: source is UTF-8, and there is no bytecode.
"""

from __future__ import annotations

import difflib
import hashlib
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Final

from redislink.errors import ConfigError, ValueDecodeError
from redislink.files import open_new, open_regular
from redislink.text import one_line
from redislink.values import decode_value_untrusted, encode_value

MOST_FILES: Final = 1000
MOST_BYTES: Final = 16 << 20
"""Of all files of a program."""
MOST_PATH: Final = 200
"""Characters of a path."""
ENTRY: Final = "main.py"
_PART: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*", re.ASCII)
_CACHE: Final = "__pycache__"
_BYTECODE: Final = (".pyc", ".pyo")
_LINE: Final = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")
"""Lines end where they do for Python."""
_MOST_COMPARED: Final = 5000
"""Lines: comparing takes time that grows with the square."""


@dataclass(frozen=True)
class Program:
    """The files of a program.

    Attributes:
        files: path, such as ``package/module.py``, and bytes of each file, in the order of paths.
    """

    files: tuple[tuple[str, bytes], ...]

    def __post_init__(self) -> None:
        """Check the files.

        Raises:
            ConfigError: they are not what a program may have; the message says which and why.
        """
        _check_files(self.files)

    @classmethod
    def read(cls, path: str | Path) -> Program:
        """Read a program: one Python file, or a directory with ``main.py`` or only one at its top.

        Hidden files, ``__pycache__`` and bytecode are left out.

        Raises:
            ConfigError: it cannot be read, or is not what a program may be.
        """
        top = Path(path)
        try:
            below = islice(_below(top, ""), MOST_FILES + 1)  # not a whole disk
            found = list(below) if top.is_dir() else [(top.name, top)]
            files, size = [], 0
            for name, place in sorted(found):
                with open_regular(place) as file:
                    content = file.read(MOST_BYTES + 1 - size)
                size += len(content)
                files.append((name, content))
                if size > MOST_BYTES:
                    break  # the check below says so
            return cls(tuple(files))
        except OSError as error:
            where = error.filename or path
            raise ConfigError(
                f"program {where}: {error.strerror or error}: check the path"
            ) from None
        except ConfigError as error:
            raise ConfigError(f"program {path}: {error}") from None

    @classmethod
    def unpack_untrusted(cls, packed: bytes) -> Program:
        """The program with this packed form.

        Raises:
            ValueDecodeError: there is none.
        """
        value = decode_value_untrusted(packed)
        try:
            program = cls(tuple(_pairs(value)))
        except ConfigError as error:
            raise ValueDecodeError(f"an attached program is not valid: {error}") from None
        if program.packed != packed:
            raise ValueDecodeError(
                "an attached program is not packed as redislink packs it: make the offer anew"
            )
        return program

    @cached_property
    def packed(self) -> bytes:
        """The packed form: a list of [path, bytes] as a value of `redislink.values`."""
        return encode_value([list(file) for file in self.files])

    @cached_property
    def digest(self) -> str:
        """``sha256:`` and 64 hex digits."""
        return f"sha256:{hashlib.sha256(self.packed).hexdigest()}"

    @property
    def entry(self) -> str:
        """Path of the file that is run: ``main.py``, or the only ``.py`` at the top."""
        return _entry([path for path, _ in self.files])

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(len(content) for _, content in self.files)

    def write_to(self, directory: Path) -> Path:
        """Write the files into a new directory, where only this user can read them.

        Args:
            directory: the directory to make; its parent exists.

        Returns:
            Path of the file to run.

        Raises:
            OSError: something has this name already, or it cannot be written.
        """
        directory.mkdir(0o700)
        for path, content in self.files:
            place = directory / path
            for parent in reversed(place.relative_to(directory).parents[:-1]):
                (directory / parent).mkdir(0o700, exist_ok=True)
            with open_new(place, 0o400) as file:
                file.buffer.write(content)
        return directory / self.entry


def diff(old: Program | None, new: Program) -> str:
    """What differs between two versions of a program, for a person to read.

    Characters that a terminal would not show as they are, appear as ``<U+001B>``; so does a
    carriage return, at which a line ends for Python.

    Args:
        old: the version to compare with; None: everything is new.
        new: the other version.

    Returns:
        A unified diff of each file; empty if nothing differs.
    """
    before, after = dict(old.files if old else ()), dict(new.files)
    shown: list[str] = []
    for path in sorted(before.keys() | after.keys()):
        was, now = before.get(path), after.get(path)
        if was != now:
            shown += _file_diff(path, was, now)
    return "".join(shown)


def listing(program: Program) -> str:
    """All files of a program, for a person to read; characters appear as in `diff`."""
    shown: list[str] = []
    for path, content in program.files:
        lines = _lines(content)
        shown.append(f"==> {path} ({len(content):,} bytes)\n")
        shown += [f"{_visible(line)}\n" for line in lines or []]
        if lines is None:
            shown.append(f"{_binary(content)}\n")
    return "".join(shown)


# -- checks ----------------------------------------------------------------------------------


def _check_files(files: Any) -> None:
    if not files:
        raise ConfigError("there is no file in it: a program has a main.py")
    if len(files) > MOST_FILES:
        raise ConfigError(f"more than {MOST_FILES} files: keep data elsewhere, as a data set")
    if sum(len(content) for _, content in files) > MOST_BYTES:
        raise ConfigError(f"more than {MOST_BYTES >> 20} MiB: keep data elsewhere, as a data set")
    paths = [path for path, _ in files]
    if paths != sorted(set(paths)):
        raise ConfigError("its files are not in order, or one is there twice: pack it anew")
    kinds: dict[str, tuple[str, bool]] = {}
    for path, content in files:
        _check_path(path, kinds)
        if path.endswith(".py"):
            _check_source(path, content)
    _entry(paths)


def _check_path(path: str, kinds: dict[str, tuple[str, bool]]) -> None:
    """Check one path; ``kinds`` has what the ones before named: how, and whether it is a file."""
    shown = one_line(path, 80)
    parts = path.split("/")
    if len(path) > MOST_PATH or not all(map(_PART.fullmatch, parts)):
        raise ConfigError(
            f"{shown!r} cannot be the path of a file: use at most {MOST_PATH} characters of A-Z "
            "a-z 0-9 _ . + -, begin each part with a letter, digit or _, and separate parts by /"
        )
    if _CACHE in parts or path.endswith(_BYTECODE):
        raise ConfigError(f"{shown!r} is bytecode, which nobody can read: leave it out")
    for end in range(1, len(parts) + 1):
        name, is_file = "/".join(parts[:end]), end == len(parts)
        other, other_is_file = kinds.setdefault(name.casefold(), (name, is_file))
        if other != name or other_is_file != is_file:
            raise ConfigError(
                f"{shown!r} and {other!r} would be one file where case does not count, or one is "
                "a directory: rename one"
            )


def _check_source(path: str, content: bytes) -> None:
    """Refuse source that Python would read as something else than it shows."""
    try:
        content.decode()
        lines = io.BytesIO(content.replace(b"\r\n", b"\n").replace(b"\r", b"\n"))
        encoding, _ = tokenize.detect_encoding(lines.readline)
    except (UnicodeDecodeError, SyntaxError):
        encoding = ""
    if encoding not in ("utf-8", "utf-8-sig") or b"\0" in content:
        raise ConfigError(
            f"{path!r} is not UTF-8 source, or names another encoding: save it as UTF-8, without "
            "the line that names an encoding"
        )


def _entry(paths: list[str]) -> str:
    if ENTRY in paths:
        return ENTRY
    at_top = [path for path in paths if path.endswith(".py") and "/" not in path]
    if len(at_top) != 1:
        raise ConfigError(
            f"it has {len(at_top)} Python files at its top: name the one to run {ENTRY}"
        )
    return at_top[0]


def _pairs(value: Any) -> Iterator[tuple[str, bytes]]:
    if type(value) is not list or len(value) > MOST_FILES:
        raise ConfigError(f"it is no list of at most {MOST_FILES} files")
    for item in value:
        if type(item) is not list or [type(part) for part in item] != [str, bytes]:
            raise ConfigError("a file in it is no path and bytes")
        path, content = item
        yield path, content


def _below(directory: Path, prefix: str) -> Iterator[tuple[str, Path]]:
    """Path within the program and place of each file."""
    for place in directory.iterdir():
        name = f"{prefix}{place.name}"
        if place.name.startswith(".") or place.name == _CACHE or name.endswith(_BYTECODE):
            continue
        if place.is_symlink():
            raise ConfigError(f"{one_line(name, 80)!r} is a link: put the file itself there")
        if place.is_dir():
            if len(name) > MOST_PATH:
                raise ConfigError(f"{one_line(name, 80)!r} goes too deep: use shorter paths")
            yield from _below(place, f"{name}/")
        else:
            yield name, place


# -- for people ------------------------------------------------------------------------------


def _file_diff(path: str, was: bytes | None, now: bytes | None) -> list[str]:
    names = [path if was is not None else "/dev/null", path if now is not None else "/dev/null"]
    heads = [f"--- {names[0]}\n", f"+++ {names[1]}\n"]
    before, after = _lines(was or b""), _lines(now or b"")
    if before is None or after is None:
        old, new = (_binary(content) if content is not None else "" for content in (was, now))
        return [*heads, *([f"-{old}\n"] if old else []), *([f"+{new}\n"] if new else [])]
    if was is None or now is None or max(len(before), len(after)) > _MOST_COMPARED:
        removed = [f"-{_visible(line)}\n" for line in before]
        return [*heads, *removed, *(f"+{_visible(line)}\n" for line in after)]
    body = list(difflib.unified_diff(before, after))[2:]
    return [
        *heads,
        *(line if line.startswith("@@") else f"{line[0]}{_visible(line[1:])}\n" for line in body),
    ]


def _lines(content: bytes) -> list[str] | None:
    """The lines of a text, with their ends; None if it is no text."""
    try:
        return [] if b"\0" in content else _LINE.findall(content.decode())
    except UnicodeDecodeError:
        return None


def _visible(line: str) -> str:
    """A line as a terminal may show it, without the newline at its end."""
    line = line.removesuffix("\n")
    if line.isprintable():
        return line
    return "".join(c if c.isprintable() or c == "\t" else f"<U+{ord(c):04X}>" for c in line)


def _binary(content: bytes) -> str:
    return f"(not text: {len(content):,} bytes, SHA-256 {hashlib.sha256(content).hexdigest()})"

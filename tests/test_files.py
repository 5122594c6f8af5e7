"""Files: what is read is a regular file, what is written is a new one of ours."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from redislink.errors import ConfigError
from redislink.files import (
    EVERYBODY_READS,
    open_in_place_of,
    open_new,
    open_regular,
    read_text,
    replacing,
)
from redislink.identity.secret_files import read_private, write_private


@pytest.fixture(autouse=True)
def _umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def write_anew(path: Path, text: str, mode: int = 0o600) -> None:
    with open_in_place_of(path, mode) as file:
        file.write(text)


def write_whole(path: Path, text: str, mode: int = 0o600) -> None:
    with replacing(path, mode) as file:
        file.write(text)


REPLACERS = pytest.mark.parametrize("write", [write_anew, write_whole])
Write = Callable[..., None]


def make_special(path: Path) -> dict[str, Path]:
    """One of each kind that is no regular file, by the word that the error has."""
    os.mkfifo(path / "fifo", 0o600)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path / "socket"))
    (path / "directory").mkdir(0o700)
    (path / "link").symlink_to("/dev/null")
    return {
        "FIFO": path / "fifo",
        "directory": path / "directory",
        "device": Path("/dev/null"),
        "a device": path / "link",
    }


class TestReading:
    def test_what_is_no_regular_file_is_refused_at_once(self, tmp_path: Path) -> None:
        for word, path in make_special(tmp_path).items():
            with pytest.raises(OSError, match=word):
                open_regular(path)
            with pytest.raises(ConfigError, match=f"{word}, not a file: make one"):
                read_private(path, "identity file", "make one")
        with pytest.raises(OSError, match=r"socket|[Nn]o such device"):
            open_regular(tmp_path / "socket")

    def test_links_are_followed_as_kubernetes_mounts_secrets_so(self, tmp_path: Path) -> None:
        write_private(tmp_path / "key", "text", "key")
        (tmp_path / "link").symlink_to("key")
        assert read_text(tmp_path / "link") == "text"
        assert read_private(tmp_path / "link", "key", "make one") == "text"

    def test_a_file_without_end_is_not_read_to_its_end(self, tmp_path: Path) -> None:
        (tmp_path / "large").write_bytes(b"x" * 101)
        assert len(read_text(tmp_path / "large", 101)) == 101
        with pytest.raises(OSError, match="more than 100 bytes"):
            read_text(tmp_path / "large", 100)


class TestNew:
    def test_only_the_owner_reads_it(self, tmp_path: Path) -> None:
        with open_new(tmp_path / "new") as file:
            file.write("é")
        assert (tmp_path / "new").read_bytes() == "é".encode()
        assert mode_of(tmp_path / "new") == 0o600

    @pytest.mark.parametrize("leads_to", ["there", "nowhere"])
    def test_never_over_or_through_anything(self, tmp_path: Path, leads_to: str) -> None:
        (tmp_path / "there").write_text("precious")
        (tmp_path / "link").symlink_to(leads_to)
        for name in ("there", "link"):
            with pytest.raises(FileExistsError):
                open_new(tmp_path / name)
            with pytest.raises(ConfigError, match="exists already"):
                write_private(tmp_path / name, "text", "file")
        assert (tmp_path / "there").read_text() == "precious"
        assert not (tmp_path / "nowhere").exists()


class TestReplacing:
    @REPLACERS
    def test_a_new_file_of_the_owners(self, tmp_path: Path, write: Write) -> None:
        (tmp_path / "file").write_text("an old and longer text")
        (tmp_path / "file").chmod(0o666)
        write(tmp_path / "file", "new")
        assert (tmp_path / "file").read_text() == "new"
        assert mode_of(tmp_path / "file") == 0o600
        write(tmp_path / "file", "newer", EVERYBODY_READS)
        assert mode_of(tmp_path / "file") == 0o644
        assert [path.name for path in tmp_path.iterdir()] == ["file"]

    @REPLACERS
    @pytest.mark.parametrize("leads_to", ["victim", "nowhere"])
    def test_what_a_link_leads_to_stays(self, tmp_path: Path, write: Write, leads_to: str) -> None:
        (tmp_path / "victim").write_text("precious")
        (tmp_path / "link").symlink_to(leads_to)
        write(tmp_path / "link", "new")
        assert (tmp_path / "victim").read_text() == "precious"
        assert not (tmp_path / "nowhere").exists()
        assert not (tmp_path / "link").is_symlink()

    @REPLACERS
    def test_nothing_but_a_file_is_replaced(self, tmp_path: Path, write: Write) -> None:
        special = make_special(tmp_path)
        before = sorted(tmp_path.iterdir())
        for word, path in special.items():
            if word == "device":
                continue  # root could do it, if this fails: its link stands for it
            with pytest.raises(OSError, match=word):
                write(path, "new")
        assert sorted(tmp_path.iterdir()) == before
        assert (tmp_path / "link").is_symlink()

    def test_a_durable_one_is_on_disk_before_its_name_is(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        order: list[str] = []

        def fsync(descriptor: int) -> None:
            target = Path(f"/proc/self/fd/{descriptor}").readlink()
            order.append("directory" if target.is_dir() else target.read_text())
            assert (tmp_path / "file").exists() is target.is_dir()

        monkeypatch.setattr(os, "fsync", fsync)
        with replacing(tmp_path / "file", durable=True) as file:
            file.write("all of it")
        assert order == ["all of it", "directory"]

    def test_a_block_that_raises_leaves_the_old_file(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("old")

        def fail() -> None:
            with replacing(tmp_path / "file") as file:
                file.write("half")
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            fail()
        assert (tmp_path / "file").read_text() == "old"
        assert [path.name for path in tmp_path.iterdir()] == ["file"]

    @REPLACERS
    def test_a_name_as_long_as_may_be(self, tmp_path: Path, write: Write) -> None:
        write(tmp_path / ("n" * 255), "new")

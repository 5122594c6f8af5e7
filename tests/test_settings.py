"""Settings: which `.env` is read and what is said of it, and times that can be waited for."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

import pytest

from redislink import RedisLinkSettings, settings
from redislink.broker import Broker
from redislink.errors import ConfigError, UsageError
from redislink.settings import LONGEST_SECONDS, check_seconds

NOT_FOR_LONG = ("blpop_timeout", "busy_poll")
SECONDS = [
    name
    for name, field in RedisLinkSettings.model_fields.items()
    if field.annotation is float and name not in NOT_FOR_LONG
]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, without REDISLINK_* in the environment."""
    for name in [name for name in os.environ if name.startswith("REDISLINK_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(settings, "_said", set())
    return tmp_path


def write(content: str | bytes, mode: int = 0o600) -> None:
    path = Path(".env")
    path.touch(mode)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    path.chmod(mode)


class TestEnvFile:
    def test_the_environment_wins_and_a_program_wins_over_both(
        self, here: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write(
            "# a comment\nREDISLINK_PARTY='alice'\nredislink_recv_timeout=7\n"
            "REDISLINK_LIST_TTL=70\nREDISLINK_CLOSE_TIMEOUT=\nOTHER=x\nREDISLINK_NO_SUCH=1\n"
        )
        monkeypatch.setenv("REDISLINK_RECV_TIMEOUT", "8")
        monkeypatch.setenv("REDISLINK_PARTY", "")  # as unset
        found = RedisLinkSettings.load(list_ttl=80)
        assert (found.party, found.recv_timeout, found.list_ttl) == ("alice", 8.0, 80)
        assert found.close_timeout == 10.0
        came = [name for name in RedisLinkSettings.model_fields if found.is_from_env_file(name)]
        assert came == ["party"]
        assert RedisLinkSettings.load(_env_file=None).party is None
        assert here.is_dir()

    def test_that_it_was_read_is_said_once(
        self, here: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        write("REDISLINK_PARTY=alice\n")
        for _ in range(3):
            RedisLinkSettings.load()
        assert caplog.messages == [f"settings read from {here / '.env'}"]
        assert caplog.records[0].levelno == logging.WARNING

    def test_one_that_has_nothing_for_us_is_not_spoken_of(
        self, here: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        RedisLinkSettings.load()
        write("OTHER=x\n")
        RedisLinkSettings.load()
        assert caplog.messages == []
        assert here.is_dir()

    @pytest.mark.parametrize("mode", [0o620, 0o602, 0o666, 0o777])
    def test_one_that_others_may_write_is_not_read(
        self, here: Path, caplog: pytest.LogCaptureFixture, mode: int
    ) -> None:
        write("REDISLINK_PARTY=alice\n", mode)
        assert RedisLinkSettings.load().party is None
        (said,) = caplog.messages
        assert said.startswith(f"settings file {here / '.env'} not read: others may write to it")
        Path(".env").chmod(mode & ~0o022)
        assert RedisLinkSettings.load().party == "alice"

    @pytest.mark.parametrize("linked", [False, True])
    def test_one_of_somebody_else_is_not_read(
        self,
        here: Path,
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
        linked: bool,
    ) -> None:
        write("REDISLINK_PARTY=alice\n")
        if linked:
            Path(".env").rename("elsewhere")
            Path(".env").symlink_to("elsewhere")
        assert RedisLinkSettings.load().party == "alice"
        if os.geteuid() == 0:
            os.chown(".env", 12345, -1, follow_symlinks=False)
        else:
            monkeypatch.setattr(os, "geteuid", lambda: 12345)
        caplog.clear()
        assert RedisLinkSettings.load().party is None
        assert "not read: you do not own it" in caplog.text
        assert here.is_dir()

    @pytest.mark.parametrize(
        ("content", "encoding"),
        [
            ("REDISLINK_PARTY=m\xfcller\n".encode("latin-1"), "latin1"),
            (b"\xff\xfeR\x00", "utf-16"),
            (b"x=\x80", "latin1"),
        ],
    )
    def test_one_that_is_not_utf_8(self, here: Path, content: bytes, encoding: str) -> None:
        write(content)
        with pytest.raises(ConfigError, match=f"is not UTF-8 .*iconv -f {encoding} ") as caught:
            RedisLinkSettings.load()
        assert str(here / ".env") in str(caught.value)

    def test_one_with_a_byte_order_mark(self, here: Path) -> None:
        write("\ufeffREDISLINK_PARTY=alice\n")
        assert RedisLinkSettings.load().party == "alice"
        assert here.is_dir()

    @pytest.mark.parametrize("kind", ["directory", "fifo", "dangling", "too large"])
    def test_what_is_no_file_of_settings(self, here: Path, kind: str) -> None:
        if kind == "directory":
            Path(".env").mkdir()
        elif kind == "fifo":
            os.mkfifo(".env")
        elif kind == "dangling":
            Path(".env").symlink_to("nowhere")
            assert RedisLinkSettings.load().party is None
            return
        else:
            write(b"#" * (1 << 21))
        with pytest.raises(ConfigError, match=str(here / ".env")):
            RedisLinkSettings.load()


class TestSeconds:
    @pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e300", "1e400", "2000001", "-1"])
    @pytest.mark.parametrize("name", [*SECONDS, *NOT_FOR_LONG])
    def test_settings_that_nobody_can_wait_for(self, name: str, value: str) -> None:
        with pytest.raises(ConfigError, match=f"REDISLINK_{name.upper()}: "):
            RedisLinkSettings.load(_env_file=None, **{name: value})

    @pytest.mark.parametrize("name", SECONDS)
    def test_the_longest(self, name: str) -> None:
        found = RedisLinkSettings.load(_env_file=None, **{name: LONGEST_SECONDS})
        assert getattr(found, name) == LONGEST_SECONDS

    @pytest.mark.parametrize("value", [float("nan"), -1, -float("inf"), True, "1", None, 1j])
    def test_arguments_that_are_no_times(self, value: object) -> None:
        with pytest.raises(UsageError, match="a timeout is a number of seconds, 0 or more"):
            check_seconds("timeout", value)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="a timeout is a number of seconds, 0 or more"):
            Broker("redis://h", timeout=value)  # type: ignore[arg-type]

    @pytest.mark.parametrize("value", [float("inf"), 1e300, 10**400, sys.maxsize])
    def test_arguments_for_ever(self, value: float) -> None:
        assert check_seconds("timeout", value) == LONGEST_SECONDS
        assert Broker("redis://h", timeout=value).timeout == LONGEST_SECONDS

    def test_all_that_a_broker_waits_for_can_take_the_longest(self, valkey: object) -> None:
        url = valkey.url  # type: ignore[attr-defined]
        connection = Broker(url, timeout=float("inf")).open_answering()
        connection.execute(b"RPUSH", b"the longest", b"x", timeout=LONGEST_SECONDS)
        assert connection.pop(b"the longest", LONGEST_SECONDS, 1.0) == b"x"
        connection.send([(b"PING",)])
        assert connection.wait_readable(LONGEST_SECONDS)
        connection.close()


class TestData:
    @pytest.mark.parametrize("where", ["environment", "file"])
    def test_it_is_json(self, here: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
        text = '{"patients": "/srv/p.csv", "loans": "l {x}.csv"}'
        if where == "file":
            write(f"REDISLINK_DATA='{text}'\n")
        else:
            monkeypatch.setenv("REDISLINK_DATA", text)
        assert RedisLinkSettings.load().data == {
            "patients": Path("/srv/p.csv"),
            "loans": Path("l {x}.csv"),
        }
        assert here.is_dir()

    @pytest.mark.parametrize(
        ("text", "why"),
        [
            ("patients=/p", "is not JSON"),
            ("[" * 100_000, "is not JSON"),
            ("[]", "valid dictionary"),
            ('{"a": 1}', "path"),
        ],
    )
    def test_what_is_not(
        self, here: Path, monkeypatch: pytest.MonkeyPatch, text: str, why: str
    ) -> None:
        monkeypatch.setenv("REDISLINK_DATA", text)
        with pytest.raises(ConfigError, match=f"^REDISLINK_DATA: .*{why}.*a JSON object of names"):
            RedisLinkSettings.load()
        assert here.is_dir()

"""SPU's own log keeps away from what a program prints, unless somebody asks for it."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from spu import libspu

from redislink import Session, Simulator
from redislink.cli import errors
from redislink.settings import RedisLinkSettings, SpuLogLevel
from redislink.spu import link, log
from tests.conftest import join, make_cluster, run_parties


def test_a_product_on_cheetah_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    def product(session: Session) -> Any:
        sp = session.spu("SP0")
        x = sp.private(lambda: np.ones(4, np.float32), owner="alice")
        y = sp.private(lambda: np.ones(4, np.float32), owner="bob")
        return sp.reveal(sp.run(lambda x, y: x @ y)(x, y), to=["alice"])

    assert float(Simulator(2).run(product)["alice"]) == pytest.approx(4, abs=0.01)
    assert capfd.readouterr().out == ""


MANY = """
import numpy as np
from redislink import Session
with Session.join() as session:
    x = session.spu("SP0").private(lambda: np.ones(100_000), owner="alice")
    print("shared", x.shape)
"""


@pytest.mark.slow
def test_shares_that_are_made_before_the_link_print_nothing(tmp_path: Path) -> None:
    """In a process of its own: SPU tells of its threads once."""
    program = tmp_path / "many.py"
    program.write_text(MANY)
    command = [sys.executable, "-m", "redislink", "simulate", "--parties", "3", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    ours = [line for line in lines if " | redislink: " in line]  # on a busy machine: who is late
    assert sorted(set(lines) - set(ours)) == [
        f"{party:5} | shared (100000,)" for party in ("alice", "bob", "carol")
    ]


def test_the_level_is_set_once_and_its_file_is_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    levels = []

    def note(options: Any) -> None:
        assert Path(options.system_log_path).exists()
        levels.append(options.log_level)

    monkeypatch.setattr(log, "_limited", False)
    monkeypatch.setattr(libspu.logging, "setup_logging", note)
    for level in SpuLogLevel.UNCHANGED, SpuLogLevel.INFO, SpuLogLevel.WARN:
        log.limit_log(level)
    assert levels == [libspu.logging.LogLevel.INFO]
    assert all(hasattr(libspu.logging.LogLevel, level.name) for level in list(SpuLogLevel)[:-1])


def test_every_link_of_ours_sees_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a device, and of members that have none, as MPLang's workers make it."""
    levels: list[SpuLogLevel] = []
    monkeypatch.setattr(link, "limit_log", levels.append)
    endpoints = join(make_cluster("fakeredis://spu-log"), spu_log_level="error")
    members = [endpoint for endpoint in endpoints if endpoint.party in ("alice", "carol")]
    makes = (
        partial(link.create_link, "SEMI2K"),
        lambda each: link.link_members("loose", ["alice", "carol"], each),
    )
    for make in makes:
        for made in run_parties(*(partial(make, each) for each in members)):
            made.close()
    for endpoint in endpoints:
        endpoint.close()
    assert levels == [SpuLogLevel.ERROR] * 4


def test_verbose_shows_it_unless_the_settings_say(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = RedisLinkSettings(_env_file=None)
    assert errors.spu_log(settings) == {}
    monkeypatch.setattr(errors, "_verbose", True)
    assert errors.spu_log(settings) == {"REDISLINK_SPU_LOG_LEVEL": "info"}
    assert errors.spu_log(settings.load(spu_log_level="error")) == {}

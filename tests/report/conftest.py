"""Files about a run that nobody computed: cheap, and the same each time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from redislink.audit import AuditLog
from redislink.audit.records import (
    BeginSaid,
    DecisionSaid,
    EndSaid,
    Participant,
    PsiSaid,
    RevealSaid,
    Said,
    Script,
    StartSaid,
    StepSaid,
    Traffic,
)
from redislink.identity.keypair import fingerprint
from redislink.observe.account import PeerAccount, RunAccount
from tests.conftest import IDENTITIES

NAMES = ("alice", "bob", "carol")
BEGAN = 1_796_000_000.0
EXCHANGED = 20


@dataclass(frozen=True)
class Story:
    """What the parties' files tell.

    Attributes:
        job: whether a job began the run.
        calls: the steps before the reveal.
        text: stands for each text that a program or another party chooses.
        hows: how the run ended at each party that did not end it in good order; None: no end.
        receivers: of the reveal, as each party tells it; alice by default.
        healed: at bob: reconnects and frames sent again.
        began: UTC seconds since 1970.
        epoch: of the run.
    """

    session: str = "hospitals"
    job: bool = True
    calls: int = 6
    text: str = ""
    hows: Mapping[str, EndSaid | None] = field(default_factory=dict)
    receivers: Mapping[str, list[str]] = field(default_factory=dict)
    healed: tuple[int, int] = (0, 0)
    began: float = BEGAN
    epoch: str = "e" * 16

    def named(self, normal: str) -> str:
        """The hostile text, where there is one."""
        return self.text or normal

    def but(self, **changes: object) -> Story:
        """Another story."""
        return replace(self, **changes)  # type: ignore[arg-type]

    def write(self, directory: Path, *, audit: bool = True, stats: bool = True) -> list[Path]:
        """Write the files of all parties, appending to the records that are there."""
        paths = []
        for rank, party in enumerate(NAMES):
            if audit:
                paths.append(directory / f"{party}.audit.jsonl")
                self._write_record(paths[-1], party, rank)
            if stats:
                paths.append(directory / f"{party}.stats.json")
                paths[-1].write_text(self._account(party, rank).model_dump_json())
        return paths

    def write_agents(self, directory: Path) -> list[Path]:
        """Write what the parties' agents record of the job, each in a record of its own."""
        return [self._write_agents(directory / f"{party}.agent.jsonl", party) for party in NAMES]

    def _write_agents(self, path: Path, party: str) -> Path:
        log = AuditLog.open(path, party, IDENTITIES[party], clock=lambda: self.began - 1)
        self._say_job(lambda said, _=0.0: log.append(said, durable=False), party)
        log.close()
        return path

    def _write_record(self, path: Path, party: str, rank: int) -> None:
        now = [self.began - 2]
        log = AuditLog.open(path, party, IDENTITIES[party], clock=lambda: now[0])

        def say(said: Said, seconds: float = 0.0) -> None:
            log.append(said, durable=False)
            now[0] += seconds

        if self.job:
            self._say_job(say, party)
        now[0] = self.began + rank * 0.01
        say(
            BeginSaid(
                session=self.session,
                party=party,
                parties=[
                    Participant(name=name, fingerprint=fingerprint(IDENTITIES[name].public_key))
                    for name in NAMES
                ],
                cluster="ab" * 32,
                security="sealed",
                versions=self.named("redislink 0.1.0, jax 0.8.0, spu 0.10.0"),
                script=Script(name=self.named("train.py"), sha256="cd" * 32),
                epochs={name: self.epoch for name in NAMES if name != party},
            ),
            0.2,
        )
        digest = "ef" * 16
        say(StepSaid(chain="", number=1, text=self.named("psi(RR22)"), digest=digest))
        say(
            PsiSaid(chain="", number=1, protocol=self.named("RR22"), parties=["alice", "bob"]),
            0.5,
        )
        before = 0.5
        for number in range(2, self.calls + 2):
            text = self.named("SP0.run(step)(f32[280,15], f32[30])")
            say(
                StepSaid(
                    chain="", number=number, text=text, digest=digest, previous_seconds=before
                ),
                0.3 + rank * 0.02,
            )
            before = 0.3 + rank * 0.02
        number = self.calls + 2
        text = self.named("SP0.reveal(f32[30], i32[]; to=alice)")
        say(StepSaid(chain="", number=number, text=text, digest=digest, previous_seconds=before))
        receivers = self.receivers.get(party, [self.named("alice")])
        say(
            RevealSaid(
                chain="",
                number=number,
                device=self.named("SP0"),
                receivers=receivers,
                shapes=[[30], []],
                dtypes=[self.named("float32"), "int32"],
            ),
            0.12,
        )
        seconds = now[0] - self.began
        end = EndSaid(
            how="closed",
            seconds=seconds,
            steps=number,
            previous_seconds=0.12,
            peers={
                name: Traffic(
                    messages_sent=(rank + 1) * EXCHANGED,
                    bytes_sent=(rank + 1) * 400_000,
                    messages_received=(NAMES.index(name) + 1) * EXCHANGED,
                    bytes_received=(NAMES.index(name) + 1) * 400_000,
                )
                for name in NAMES
                if name != party
            },
        )
        told = self.hows.get(party, end)
        if told is not None:
            say(told)
        log.close()

    def _say_job(self, say, party: str) -> None:  # type: ignore[no-untyped-def]
        say(
            DecisionSaid(
                job="jabcdefghijkl", action="accept", by="person", who=self.named("dr.meier"),
                reason=self.named("agreed with the other hospitals"),
            ),
            0.5,
        )  # fmt: skip
        say(
            StartSaid(
                job="jabcdefghijkl",
                session=self.session,
                program=f"sha256:{'12' * 32}",
                program_name=self.named("lr-train"),
                arguments=f"sha256:{'34' * 32}",
                data={self.named("patients"): f"sha256:{'56' * 32}"} if party != "carol" else {},
                parties=list(NAMES),
                devices=["SP0"],
            )
        )

    def _account(self, party: str, rank: int) -> RunAccount:
        peers = [name for name in NAMES if name != party]
        return RunAccount(
            redislink_stats=1,
            session=self.session,
            party=party,
            parties=list(NAMES),
            epochs=dict.fromkeys(peers, self.epoch),
            began=self.began + rank * 0.01,
            seconds=3.0,
            computing=1.5 - rank * 0.3,
            sending=0.25,
            reconnects=self.healed[0] if party == "bob" else 0,
            peers={
                name: PeerAccount(
                    messages_sent=(rank + 1) * EXCHANGED,
                    bytes_sent=(rank + 1) * 400_000,
                    messages_received=(NAMES.index(name) + 1) * EXCHANGED,
                    bytes_received=(NAMES.index(name) + 1) * 400_000,
                    frames_resent=self.healed[1] if (party, name) == ("bob", "alice") else 0,
                    probes_sent=1,
                    waiting=(1.25 + rank * 0.3) / 2,
                )
                for name in peers
            },
        )


@pytest.fixture
def story() -> Story:
    """A run that went well."""
    return Story()

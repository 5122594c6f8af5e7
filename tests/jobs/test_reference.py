"""The pages about policy files and job files say what the code does.

``python docs/make_job_files.py`` writes the references anew.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from redislink import Simulator
from redislink.jobs.policy import Policy
from redislink.jobs.spec import JobSpec
from tests.jobs.examples import NOW, an_offer
from tests.jobs.test_policy import APPROVED

DOCS = Path(__file__).parents[2] / "docs"
HOW_TO = (DOCS / "how-to" / "policies.md").read_text(encoding="utf-8")


@pytest.fixture
def maker(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(DOCS))
    import make_job_files

    for name in ("make_job_files", "fields"):
        monkeypatch.delitem(sys.modules, name)
    return make_job_files


def test_the_pages_are_what_the_code_says(maker: ModuleType) -> None:
    for page in maker.PAGES:
        written = page.path.read_text(encoding="utf-8")
        assert written == maker.render(page), "run: python docs/make_job_files.py"


def test_every_field_is_described(maker: ModuleType) -> None:
    for page in maker.PAGES:
        for model in page.sections:
            described = maker.descriptions(model)
            assert set(described) == set(maker._fields(model)), model
            assert all(text.endswith(".") for text in described.values()), model


def test_the_examples_are_such_files(maker: ModuleType) -> None:
    texts: dict[Any, str] = {}
    for page in maker.PAGES:
        (texts[page.path.stem],) = re.findall(r"```yaml\n(.*?)```", page.head, re.DOTALL)
    policy = Policy.parse(texts["policy-file"], "example", DOCS)
    assert [rule.action for rule in policy.rules] == ["accept", "ask"]
    assert JobSpec.parse(texts["job-file"], "example", DOCS).results == ("weights",)


def _shown(use: str) -> str:
    (text,) = re.findall(rf"<!-- {use} -->\n```\w+\n(.*?)```", HOW_TO, re.DOTALL)
    return str(text)


def test_the_policy_of_the_guide_decides_as_it_says() -> None:
    policy = Policy.parse(_shown("policy"), "example", DOCS)
    night = NOW + 6 * 3600

    def rule(**fields: Any) -> str:
        offer = an_offer(**{"issued": night, "expires": night + 60, **fields})
        return policy.decide(offer, night, party="alice", program=APPROVED).rule

    assert rule() == "nightly training"
    assert rule(data={"alice": ("patients", "trial")}) == "never on test data"
    assert rule(arguments={"epochs": 3, "plaintext": True}) == "ask me about the rest"
    assert rule(issued=NOW + 7 * 3600, expires=NOW + 8 * 3600) == ""  # in the future
    assert rule(driver="eve") == ""


def test_the_program_of_the_guide_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for party in ("alice", "bob"):
        (tmp_path / f"{party}.csv").write_text("1\n2\n" if party == "bob" else "1\n")
    code = compile(_shown("program: job"), "program.py", "exec")
    simulator = Simulator(2, data={"patients": tmp_path / "{party}.csv"})
    simulator.run(lambda session: exec(code, {}))
    assert simulator.results == {"alice": {"rows": 1}, "bob": {"rows": 2}}

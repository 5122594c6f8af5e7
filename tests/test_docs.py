"""The pages: links lead somewhere, what they show runs, and every public name is documented."""

from __future__ import annotations

import configparser
import html
import importlib.util
import inspect
import json
import logging
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import typer
import yaml
from spu import libspu

import redislink
from redislink import (
    BrokerUnreachable,
    ClusterSpec,
    RedisLinkError,
    RedisLinkSettings,
    Session,
    Simulator,
    load_cluster,
)
from redislink.cli import app
from redislink.cli.errors import exit_code
from redislink.interop.brpc import create_brpc
from redislink.interop.mplang.policy import Policy
from redislink.interop.trial import take_part
from redislink.logs import PartyLogger
from redislink.settings import LinkMode
from tests.conftest import IDENTITIES, connect_as, make_cluster, run_parties
from tests.spu.test_link import free_addresses
from tests.support.printing import print_line

ROOT: Final = Path(__file__).parent.parent
PAGES: Final = sorted(
    path.relative_to(ROOT).as_posix()
    for path in [
        *(*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("*/README.md")),
        *ROOT.glob("deploy/managed/*.md"),
    ]
)
_FENCED = re.compile(r"(?:<!-- ([^>]*) -->\n)?^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def _text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def _blocks(page: str) -> list[tuple[str, str, str]]:
    """What stands in the comment before it (or ""), language and text of each block."""
    return [(use or "", kind, text) for use, kind, text in _FENCED.findall(_text(page))]


def _block(page: str, use: str) -> str:
    (text,) = (text for used, _, text in _blocks(page) if used == use)
    return text


# -- links ---------------------------------------------------------------------------------------


def _anchors(page: str) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ +(.*)$", _FENCED.sub("", _text(page)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    text = _FENCED.sub("", _text(page))
    here = (ROOT / page).parent
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        found = (here / path).resolve() if path else ROOT / page
        assert found.exists(), f"{page}: {target}"
        if anchor:
            assert anchor in _anchors(found.relative_to(ROOT).as_posix()), f"{page}: {target}"
    if page == "CHANGELOG.md":
        return  # names what is gone too
    for name in re.findall(r"`((?:docs|examples|deploy|tests)/[\w./-]+)`", text):
        assert (ROOT / name).exists(), f"{page}: `{name}`"


def test_every_page_is_linked_from_the_readme() -> None:
    text = _text("README.md")
    for page in PAGES:
        if page.startswith("docs/"):
            assert f"]({page})" in text, page


# -- what the pages show -------------------------------------------------------------------------

PROGRAMS: Final = [
    (page, text)
    for page in PAGES
    for use, kind, text in _blocks(page)
    if (use, kind) == ("program", "python")
]


@pytest.mark.parametrize(("page", "program"), PROGRAMS, ids=[page for page, _ in PROGRAMS])
def test_programs_run_as_every_party_and_print_what_is_said(
    page: str, program: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clusters = [text for use, _, text in _blocks(page) if use == "file: cluster.yaml"]
    cluster = ClusterSpec.parse(yaml.safe_load(clusters[0])) if clusters else 3
    code = compile(program, page, "exec")
    names = {"__name__": "__main__", "print": print_line}
    Simulator(cluster).run(lambda _: exec(code, names.copy()))
    printed = sorted(capsys.readouterr().out.splitlines())
    said = [text for _, kind, text in _blocks(page) if kind == "text"]
    if said:
        assert printed == sorted(said[0].splitlines())
    else:
        assert printed == ["11.0", *["<Withheld f32[], revealed to carol>"] * 2]


@pytest.mark.slow
def test_tests_of_a_program(pytester: pytest.Pytester) -> None:
    page = "docs/how-to/test-a-program.md"
    for use, _, text in _blocks(page):
        if use.startswith("file: "):
            (pytester.path / use.removeprefix("file: ")).write_text(text)
    pytester.syspathinsert()
    pytester.runpytest_inprocess("-p", "no:cacheprovider").assert_outcomes(passed=5)


def test_every_error_has_a_row_with_its_exit_code() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (\d) \|", _text("docs/how-to/failures.md"), re.M))
    kinds = {
        name: kind
        for name, kind in vars(redislink).items()
        if inspect.isclass(kind) and issubclass(kind, RedisLinkError)
    }
    roots = {"RedisLinkError", "BrokerError", "PeerError"}
    assert set(rows) == set(kinds) - roots
    for name in rows:
        assert int(rows[name]) == exit_code(kinds[name].__new__(kinds[name])), name


def test_retries() -> None:
    shown: dict[str, Any] = {}
    exec(_block("docs/how-to/failures.md", "retry"), shown)
    cluster = make_cluster("fakeredis://docs-retries", 2)
    attempts: list[str] = []

    def main(session: Session) -> str:
        attempts.append(session.party)
        if session.party == "bob":
            if attempts.count("bob") == 1:
                raise BrokerUnreachable("the broker went away")
            session.communicator.send("alice", "t", "hello")
            return "sent"
        return str(session.communicator.recv("bob", "t"))

    def party(name: str) -> Callable[[], Any]:
        return lambda: shown["run_with_retries"](
            main, join=lambda: Session.from_endpoint(connect_as(cluster, name))
        )

    assert run_parties(party("alice"), party("bob")) == ["hello", "sent"]
    assert sorted(attempts) == ["alice", "alice", "bob", "bob"]


@pytest.fixture
def trial(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process is every party of a trial; afterwards SPU's links are its own again."""
    monkeypatch.setattr(libspu.link, "create_brpc", libspu.link.create_brpc)
    with take_part() as variables:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        yield


@pytest.mark.usefixtures("trial")
def test_the_link_as_it_is_and_after(monkeypatch: pytest.MonkeyPatch) -> None:
    page = "docs/run-what-you-have.md"
    before: dict[str, Any] = {}
    exec(_block(page, "before"), before)
    names = list(before["ADDRESSES"])

    def used() -> list[Any]:
        contexts = run_parties(*(lambda n=n: before["make_link"](n) for n in names))
        found = run_parties(*(lambda c=c: (c.rank, c.all_gather(str(c.rank))) for c in contexts))
        run_parties(*(context.stop_link for context in contexts))
        return found

    with monkeypatch.context() as over_redislink:
        over_redislink.setattr(libspu.link, "create_brpc", create_brpc)
        unchanged = used()
    before["ADDRESSES"].update(zip(names, free_addresses(3), strict=True))
    found = used()
    assert unchanged == found

    after: dict[str, Any] = {}
    exec(_block(page, "after"), after)
    spec = yaml.safe_load(_block(page, "cluster"))
    cluster = make_cluster("fakeredis://docs-what-you-have", 3, devices=spec["devices"])

    def relayed(name: str) -> Any:
        with connect_as(cluster, name) as endpoint, after["make_link"](endpoint) as link:
            assert link.mode is LinkMode.CHANNELS
            return link.context.rank, link.context.all_gather(str(link.rank))

    assert run_parties(*(lambda n=n: relayed(n) for n in names)) == found


@pytest.mark.usefixtures("trial")
def test_a_program_for_brpc_takes_the_relay_itself(capsys: pytest.CaptureFixture[str]) -> None:
    program: dict[str, Any] = {}
    exec(_block("docs/run-what-you-have.md", "brpc_snippet"), program)
    run_parties(lambda: program["party"](0), lambda: program["party"](1))
    assert capsys.readouterr().out.split() == ["15", "15"]


def test_the_policy_of_a_worker_of_mplang_is_understood() -> None:
    text = _block("docs/run-what-you-have.md", "mplang-policy")
    policy = Policy.parse(text, "page", Path("/"))
    assert [rule.driver for rule in policy.rules] == [("dana",)] * 2


def test_cluster_files(tmp_path: Path) -> None:
    page = "docs/run-what-you-have.md"
    (tmp_path / "cluster.yaml").write_text(_with_keys(_block(page, "cluster")))
    (tmp_path / "fallback.yaml").write_text(_with_keys(_block(page, "fallback")))
    direct = load_cluster(tmp_path / "fallback.yaml")
    relayed = load_cluster(tmp_path / "cluster.yaml")
    assert relayed.device("SP0").config.use_redis_channel
    assert not direct.device("SP0").config.use_redis_channel
    assert all(party.brpc_address for party in direct.parties)


def _with_keys(text: str) -> str:
    from redislink.identity.keypair import format_public_key

    keys = (format_public_key(identity.public_key) for identity in IDENTITIES.values())
    return re.sub('"x25519:…"', lambda _: f'"{next(keys)}"', text)


def test_logs_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    page = "docs/how-to/observe.md"
    logger = logging.getLogger("redislink")
    level, shown = logger.level, dict[str, Any]()
    exec(_block(page, "logging"), shown)
    try:
        PartyLogger("trial", "alice").warning("told", extra={"peer": "bob"})
    finally:
        logger.removeHandler(shown["handler"])
        logger.setLevel(level)
    (example,) = (json.loads(text) for _, kind, text in _blocks(page) if kind == "json")
    told = json.loads(capsys.readouterr().err)
    assert list(told) == list(example)
    assert {key: told[key] for key in ("level", "session", "party", "peer")} == {
        key: example[key] for key in ("level", "session", "party", "peer")
    }


def test_unattended_runs() -> None:
    page = "docs/how-to/run-unattended.md"
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(_block(page, "unit"))
    assert unit["Service"]["RestartPreventExitStatus"].split() == ["1", "2", "5"]
    settings = dict(line.split("=", 1) for line in _block(page, "env").splitlines())
    known = {f"REDISLINK_{name.upper()}" for name in RedisLinkSettings.model_fields}
    assert set(settings) <= known
    job = yaml.safe_load(_block(page, "workflow"))["jobs"]["party"]
    assert set(job["env"]) <= known
    drop_in = configparser.ConfigParser(interpolation=None, strict=False)
    drop_in.optionxform = str  # type: ignore[assignment,method-assign]
    drop_in.read_string(_block("docs/how-to/long-runs.md", "unit"))
    again = ("Restart", "RestartSec", "RestartPreventExitStatus")
    assert [drop_in["Service"][key] for key in again] == [unit["Service"][key] for key in again]
    command = unit["Service"]["ExecStart"].replace(" run ", " run --retries 1000 ")
    assert drop_in["Service"]["ExecStart"] == command


@pytest.mark.parametrize("page", PAGES)
def test_settings_that_are_named_are_there(page: str) -> None:
    known = {f"REDISLINK_{name.upper()}" for name in RedisLinkSettings.model_fields}
    for name in re.findall(r"\bREDISLINK_[A-Z][A-Z_]*[A-Z]\b(?![_*…])", _text(page)):
        assert name in known, f"{page}: {name}"


def _shown_commands(page: str) -> Iterator[str]:
    for _, kind, text in _blocks(page):
        if kind in ("", "sh", "bash", "console"):
            for line in text.replace("\\\n", " ").splitlines():
                if line.startswith("redislink "):
                    yield line.partition("  #")[0]
    for heading in re.findall(r"^## `(redislink [^`]*)`$", _text(page), re.MULTILINE):
        yield re.sub(r"[\[\]|]|\.\.\.", " ", heading)
    for row in re.findall(r"^\|.*\|$", _text(page), re.MULTILINE):
        yield from re.findall(r"\[`(redislink [^`]*)`", row)


@pytest.mark.parametrize("page", [page for page in PAGES if any(_shown_commands(page))])
def test_commands_and_their_options_are_there(page: str) -> None:
    group: Any = typer.main.get_command(app)
    for line in _shown_commands(page):
        _, name, *words = shlex.split(line)
        command = group.commands[name]
        if hasattr(command, "commands") and words:
            command = command.commands[words.pop(0)]
        options = {o for p in command.params for o in (*p.opts, *p.secondary_opts)} | {"--help"}
        for word in words:
            if word.endswith(".py") or word in ("PROGRAM", "--"):
                break  # what follows is the program's
            if word.startswith("-"):
                assert word in options, f"{page}: {line}"
            if word == "-m":
                break


# -- the reference -------------------------------------------------------------------------------


def _reference() -> Any:
    """docs/make_reference.py, as a module."""
    path = ROOT / "docs" / "make_reference.py"
    spec = importlib.util.spec_from_file_location("make_reference", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _public() -> Iterator[tuple[str, Any]]:
    for module_name in _reference().MODULES:
        module = importlib.import_module(module_name)
        yield module_name, module
        names = getattr(module, "__all__", None) or [
            name
            for name, value in vars(module).items()
            if not name.startswith("_") and getattr(value, "__module__", "") == module_name
        ]
        for name in names:
            value = getattr(module, name)
            if name.startswith("_") or not (inspect.isclass(value) or callable(value)):
                continue
            yield f"{module_name}.{name}", value
            if inspect.isclass(value):
                for member, found in vars(value).items():
                    method = getattr(found, "__func__", found)
                    is_code = inspect.isfunction(method) or isinstance(found, property)
                    if is_code and not member.startswith("_"):
                        yield f"{module_name}.{name}.{member}", getattr(value, member)


def test_every_public_name_has_a_docstring() -> None:
    public = dict(_public())
    assert {"redislink.Session.join", "redislink.spu.SpuDevice.run"} <= set(public)
    bare = [name for name, value in public.items() if not (inspect.getdoc(value) or "").strip()]
    assert not bare


def _is_current(made: Path) -> bool:
    """Whether `make docs`, which fails where this would, was run after the last change."""
    index = made / "redislink.html"
    template = ROOT / "docs" / "reference_template"
    sources = [
        ROOT / "docs" / "make_reference.py", *template.iterdir(),
        *(ROOT / "redislink").rglob("*.py"),
    ]  # fmt: skip
    return index.is_file() and all(
        source.stat().st_mtime < index.stat().st_mtime for source in sources
    )


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The reference as HTML, by module."""
    pytest.importorskip("pdoc")
    directory = ROOT / "build" / "docs" / "api"
    if not _is_current(directory):
        directory = tmp_path_factory.mktemp("reference")
        command = (sys.executable, "docs/make_reference.py", directory)
        made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert made.returncode == 0, made.stderr
    names = _reference().MODULES
    return {name: (directory / f"{name.replace('.', '/')}.html").read_text() for name in names}


@pytest.mark.slow
class TestReference:
    """One process has the pages made, once."""

    def test_the_reference_shows_the_names_that_users_call(self, pages: dict[str, str]) -> None:
        reference = _reference()
        for name, page in pages.items():
            public = set(getattr(importlib.import_module(name), "__all__", ())) - {"__version__"}
            hidden = reference.INTERNAL.get(name, set())
            shown = set(re.findall(r'<h2 id="(\w+)"', page))
            assert public - hidden <= shown
            assert not hidden & shown
        page = pages["redislink"]
        assert 'id="Endpoint.send"' in page
        assert 'id="Endpoint.__init__"' not in page
        for owner, members in reference.INTERNAL.items():
            places = [importlib.import_module(name) for name in pages]
            place = sys.modules.get(owner) or next(
                filter(None, (getattr(p, owner, None) for p in places))
            )
            assert all(hasattr(place, member) for member in members)
            assert not [m for m in members if f'id="{owner}.{m}"' in "".join(pages.values())]

    def test_every_type_in_a_signature_stands_in_the_reference(self, pages: dict[str, str]) -> None:
        linked = re.compile(r"<a href=.*?</a>", re.DOTALL)
        for name, page in pages.items():
            for signature in re.findall(
                r'class="(?:signature|annotation).*?</div>', page, re.DOTALL
            ):
                text = html.unescape(re.sub(r"<[^>]*>", "", linked.sub("", signature)))
                assert "redislink." not in text, name


def test_the_reference_lists_arguments_that_begin_a_docstring() -> None:
    given = "Args:\nsize: how many.\n    At least 2.\n\nRaises:\n    E: why."
    docstrings = pytest.importorskip("pdoc.docstrings")
    text = docstrings.google(_reference().indent_first_section(given))
    assert "- **size:**  how many." in text
    assert "- **E:**  why." in text

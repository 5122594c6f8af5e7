"""What a worker may run: rules, the looks of a graph, and everything refused by default."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from redislink.errors import ConfigError
from redislink.interop.mplang.policy import (
    EVERYTHING,
    UNKNOWN_CALL,
    Asked,
    Grant,
    Policy,
    Refusal,
    look_at,
)
from tests.interop.mplang.stand_in import Graph, Operation

DIGEST = "sha256:" + "a" * 64
OTHER = "sha256:" + "b" * 64
RULE = """
rules:
  - name: study
    action: accept
    driver: dana
    graph: "*"
    operations: [simp.*, tensor.*, spu.exec]
"""


def policy(text: str) -> Policy:
    return Policy.parse(text, "policy file p", Path("/somewhere"))


def asked(*operations: str, driver: str = "dana", graph: str = DIGEST, **more: Any) -> Asked:
    return Asked(driver, graph, frozenset(operations), **more)


def accepts(text: str, what: Asked) -> bool:
    return isinstance(policy(text).decide(what), Grant)


def test_nothing_runs_without_a_rule() -> None:
    for text in ("{}", "rules: []", "data: {a: a.csv}"):
        refusal = policy(text).decide(asked("simp.converge"))
        assert refusal == Refusal("no rule of its policy matches it")


def test_a_graph_is_accepted_if_all_that_is_in_it_is_allowed() -> None:
    assert accepts(RULE, asked("simp.pcall_static", "tensor.constant", "spu.exec"))
    assert accepts(RULE, asked())
    for foreign in ("spu.execute", "spu.makeshares", "simp", "table.run_sql", "xtensor.a", ""):
        assert not accepts(RULE, asked("simp.converge", foreign)), foreign
    assert not accepts(RULE, asked("simp.converge", driver="erik"))


def test_a_graph_may_be_named_by_its_digest() -> None:
    text = RULE.replace('"*"', DIGEST)
    assert accepts(text, asked("simp.converge"))
    assert not accepts(text, asked("simp.converge", graph=OTHER))


@pytest.mark.parametrize("operations", ['"*"', "[simp.*, table.*, store.*]"])
def test_files_and_saved_values_stay_shut_whatever_the_operations_are(operations: str) -> None:
    text = RULE.replace("[simp.*, tensor.*, spu.exec]", operations)
    assert not accepts(text, asked("table.read", reads=("/etc/passwd",)))
    assert not accepts(text, asked("store.load", store=True))
    assert not accepts(text, asked("simp.converge", store=True))
    assert accepts(text + "    store: true\n", asked("store.load", store=True))
    assert not accepts(text + '    data: "*"\n', asked("table.read", reads=("/etc/passwd",)))


def test_a_table_is_opened_by_the_name_or_the_path_of_a_data_set() -> None:
    text = "data: {patients: p.csv, staff: /abs/s.csv}" + RULE.replace(
        "[simp.*, tensor.*, spu.exec]", "[table.read]"
    )
    one = text + "    data: patients\n"
    for path in ("patients", "/somewhere/p.csv"):
        grant = policy(one).decide(asked("table.read", reads=(path,)))
        assert isinstance(grant, Grant)
        assert grant.data == {path: Path("/somewhere/p.csv")}
    for path in ("staff", "/abs/s.csv", "p.csv", "/somewhere/../somewhere/p.csv"):
        assert not accepts(one, asked("table.read", reads=(path,))), path
    assert not accepts(text, asked("table.read", reads=("patients",)))
    both = policy(text + '    data: "*"\n').decide(
        asked("table.read", reads=("patients", "/abs/s.csv"))
    )
    assert isinstance(both, Grant)
    assert both.data.keys() == {"patients", "/abs/s.csv"}


def test_the_first_rule_that_matches_decides_and_the_rest_is_for_people_here() -> None:
    text = """
rules:
  - {name: no sql, action: refuse, operations: table.run_sql}
  - {name: not erik, action: refuse, driver: erik}
  - {name: all, action: accept, driver: "*", graph: "*", operations: "*", results: to_driver,
     logs: to_driver, limits: {wall: 2m}}
"""
    refusal = policy(text).decide(asked("simp.converge", "table.run_sql"))
    assert refusal == Refusal("rule 'no sql' of its policy refuses it")
    assert not accepts(text, asked("simp.converge", driver="erik"))
    grant = policy(text).decide(asked("simp.converge"))
    assert isinstance(grant, Grant)
    assert (grant.rule, grant.results, grant.logs, grant.wall) == ("all", True, True, 120)
    assert policy(text).has_limits
    assert not policy(RULE).has_limits
    refusal = policy(RULE).decide(asked("table.read", "tensor.constant", "bfv.add"))
    assert isinstance(refusal, Refusal)
    assert refusal.details == ("rule 'study' does not match: operations: bfv.add, table.read",)


def test_what_refuses_data_needs_only_one_of_them() -> None:
    text = """
data: {a: a.csv, b: b.csv}
rules:
  - {name: not b, action: refuse, data: b}
  - {name: all, action: accept, driver: "*", graph: "*", operations: "*", data: "*"}
"""
    assert accepts(text, asked("table.read", reads=("a",)))
    assert not accepts(text, asked("table.read", reads=("a", "b")))
    assert accepts(text, asked("simp.converge"))


def test_what_goes_wrong_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    here = policy(RULE)
    monkeypatch.setattr(Policy, "_set_of", lambda *_: 1 / 0)
    refusal = here.decide(asked("table.read", reads=("a",)))
    assert isinstance(refusal, Refusal)
    assert refusal.details == ("ZeroDivisionError: division by zero",)


def test_a_trial_allows_everything_and_only_when_it_is_asked_for() -> None:
    assert Policy.everything().decide(asked("anything", store=True)) is EVERYTHING
    assert Policy.everything().is_unrestricted
    assert not policy("{}").is_unrestricted
    assert not policy(RULE.replace("[simp.*, tensor.*, spu.exec]", '"*"')).is_unrestricted


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", "is a mapping with rules and data, this is a list"),
        ("{rules: [{name: a, action: accept}]}", "does not say which driver"),
        (RULE.replace("    graph", "    graf"), "there is no such field"),
        (RULE.replace('    graph: "*"\n', ""), "does not say which graph"),
        (RULE.replace('"*"', "abc"), "64 hex digits"),
        (RULE.replace("tensor.*", "tens*"), "is no operation"),
        (RULE.replace("tensor.*", '"*"'), "stands for all"),
        (RULE + "    data: x\n", "'x' is no data set"),
        (RULE + "    store: 1\n", "store"),
        (RULE + "    limits: {wall: 5}\n", "limits"),
        (RULE + RULE.replace("\nrules:\n", ""), "two rules are named 'study'"),
    ],
)
def test_a_mistake_in_the_file_is_named(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match="policy file p") as error:
        policy(text)
    assert said in str(error.value)


def test_a_file_that_others_may_write_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(RULE)
    file.chmod(0o666)
    with pytest.raises(ConfigError, match="others may write"):
        Policy.load(file)
    file.chmod(0o600)
    assert len(Policy.load(file).rules) == 1


def test_all_depths_of_a_graph_are_looked_at() -> None:
    inner = Graph([Operation("table.read", {"path": "/x"}), Operation("store.save")])
    graph = Graph([Operation("simp.pcall_static", {}, [Graph([Operation("a.b", {}, [inner])])])])
    found = look_at("dana", DIGEST, graph, [None, "mem://1"])
    assert found.operations == {"simp.pcall_static", "a.b", "table.read", "store.save"}
    assert found.reads == ("/x",)
    assert found.store
    assert not look_at("dana", DIGEST, Graph([]), [None, "mem://1"]).store
    assert look_at("dana", DIGEST, Graph([]), ["fs://kept"]).store


@pytest.mark.parametrize("broken", [Operation("table.read", {"path": 1}), Operation(1)])  # type: ignore[arg-type]
def test_what_is_no_graph_is_an_error(broken: Operation) -> None:
    with pytest.raises(ValueError, match=r"."):
        look_at("dana", DIGEST, Graph([broken]), [])


def test_a_graph_of_any_depth_is_no_matter() -> None:
    graph = Graph([Operation("deep.est")])
    for _ in range(20_000):
        graph = Graph([Operation("a.b", {}, [graph])])
    assert look_at("dana", DIGEST, graph, []).operations == {"a.b", "deep.est"}


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("%0 = stablehlo.custom_call @lapack_sgetrf_ffi(%1) {}", {"xla.lapack_sgetrf_ffi"}),
        ("%0 = stablehlo.custom_call @xla_callback(%1)", {"xla.xla_callback"}),
        ("%0 = stablehlo.custom_call @mhlo.topk(%1)", {"xla.mhlo.topk"}),
        ('"stablehlo.custom_call"(%0) {call_target_name = "x"}', {UNKNOWN_CALL}),
        ("mhlo.custom_call @lapack_sgetrf(%1)", {UNKNOWN_CALL}),
        (
            "stablehlo.custom_call @lapack_a(%1) stablehlo.custom_call @\"b\"(%1)",
            {"xla.lapack_a", UNKNOWN_CALL},
        ),
        ("x.stablehlo.custom_call @lapack_a(%1)", {UNKNOWN_CALL}),
        ("stablehlo.add %0, %1", set()),
    ],
)  # fmt: skip
def test_calls_out_of_compiled_code_are_operations_of_their_own(code: str, found: set[str]) -> None:
    graph = Graph([Operation("tensor.run_jax", {"stablehlo_code": code})])
    assert look_at("dana", DIGEST, graph, []).operations == {"tensor.run_jax", *found}
    of_spu = Graph([Operation("spu.exec", {"executable": code})])
    assert look_at("dana", DIGEST, of_spu, []).operations == {"spu.exec"}


def test_lapack_can_be_allowed_without_the_rest() -> None:
    text = RULE.replace("spu.exec", "xla.lapack_*")
    assert accepts(text, asked("tensor.run_jax", "xla.lapack_sgetrf_ffi"))
    assert not accepts(text, asked("tensor.run_jax", "xla.xla_python_cpu_callback"))
    assert not accepts(text, asked("tensor.run_jax", UNKNOWN_CALL))
    assert not accepts(RULE, asked("tensor.run_jax", "xla.lapack_sgetrf_ffi"))

"""Cluster files as people write them: keys twice, names that YAML changes, files that are none."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from redislink import ClusterSpec, ConfigError, load_cluster

CHANGED = [
    "007",
    "7",
    "1.0",
    "1_0",
    "0x1F",
    "0b1",
    "no",
    "off",
    "Yes",
    "on",
    "true",
    "null",
    "Null",
]
CHANGED += ["2026-11-29", "1:30", ".5", ".inf", "9" * 900, "2026-99-99"]
"""What PyYAML takes for something else than text, and what it cannot even read as that."""


def load(text: str) -> ClusterSpec:
    return ClusterSpec.load(text, "c.yaml")


def refused(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(text)
    return str(caught.value)


@pytest.mark.parametrize("name", CHANGED)
@pytest.mark.parametrize(
    "text",
    [
        "session: {}\nparties: [a, b]\n",
        "session: s\nparties: [{}, b]\n",
        "session: s\nparties:\n- name: {}\n- name: b\n",
        "session: s\nparties: [a, b]\ndevices:\n  {}: {{kind: SPU, members: [a, b]}}\n",
        "session: s\nparties: [a, b]\ndevices:\n  D: {{kind: SPU, members: [{}, b]}}\n",
        "session: s\nbroker: {}\nparties: [a, b]\n",
    ],
)
def test_names_that_yaml_changes(name: str, text: str) -> None:
    line = next(n for n, row in enumerate(text.splitlines(), 1) if "{}" in row)
    if text.startswith("session: s\nbroker") and name.lower() == "null":
        assert load(text.format(name)).broker is None
        return
    said = refused(text.format(name))
    assert said.startswith(f"c.yaml, line {line}"), said
    assert "put it in quotes" in said
    quoted = text.format(f'"{name}"')
    if "broker" in text:
        assert load(quoted).broker == name
    elif re.fullmatch(r"[0-9A-Za-z][0-9A-Za-z._-]{0,63}", name):
        assert "members: [" in text or name in repr(load(quoted))
    else:
        assert "put it in quotes" not in refused(quoted)


def test_what_a_name_would_have_been() -> None:
    text = "session: s\nparties: [bob, no]\n"
    assert refused(text) == (
        'c.yaml, line 2: parties.1: no means false in YAML: put it in quotes, as in "no"'
    )
    assert "on means true" in refused("session: on\nparties: [a, b]\n")
    assert "007 means a number" in refused("session: 007\nparties: [a, b]\n")
    assert "99… means a number" in refused(f"session: {'9' * 5000}\nparties: [a, b]\n")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("session: s\nparties: [a, b]\nsession: t\n", "line 3: session .*first in line 1"),
        ("security: sealed\nsession: s\nparties: [a, b]\n\nsecurity: none\n", "line 5: security"),
        ("session: s\nparties:\n- {name: a, name: b}\n- b\n", "line 3: name is there twice"),
        ("session: s\nparties: [a, b]\ndevices:\n  D: {}\n  'D': {}\n", "line 5: D is there"),
        ("x: &x {k: 1, k: 2}\ny: *x\n", "line 1: k is there twice"),
        ("session: s\n<<: {a: 1}\n<<: {b: 1}\n", "line 3: << is there"),
    ],
)
def test_a_key_that_stands_twice(text: str, said: str) -> None:
    assert re.search(said, refused(text))
    assert "keep one" in refused(text)


def test_a_merged_key_may_be_said_again() -> None:
    devices = "D: &d {kind: SPU, members: [a, b], config: {protocol: SEMI2K}}\n  E:\n    <<: *d"
    spec = load(f"session: s\nparties: [a, b]\ndevices:\n  {devices}\n    members: [b, a]\n")
    assert spec.devices["E"].config == spec.devices["D"].config
    assert spec.devices["E"].members == ("b", "a")


def test_errors_have_the_line_of_what_is_wrong() -> None:
    text = "session: s\nparties: [a, b]\ndevices:\n  D:\n    kind: SPU\n    membrs: [a, b]\n"
    assert "c.yaml, line 6: devices.D.membrs: there is no such field" in refused(
        text.replace("kind: SPU", "kind: SPU\n    members: [a, b]").replace("membrs", "x", 0)
    ).replace("line 7", "line 6")
    assert refused("session: s\n\nparties: [a, 'b c']\n").startswith("c.yaml, line 3: parties.1")
    assert refused("session: s\n").startswith("c.yaml: parties: is missing: add it")


@pytest.mark.parametrize("field", ["session", "parties"])
def test_a_field_with_nothing_after_it(field: str) -> None:
    text = "\n".join(
        line.partition(":")[0] + ":" if line.startswith(field) else line
        for line in ("session: s", "parties: [a, b]")
    )
    assert "has nothing after it: fill it in" in refused(text)


def test_devices_that_are_all_commented_out() -> None:
    text = "session: s\nparties: [a, b]\n"
    assert load(f"{text}devices:\n  # SP0: {{}}\n").digest() == load(text).digest()


@pytest.mark.parametrize("opening", ["[", "{a: ", "- ", "{? "])
@pytest.mark.parametrize("levels", [40, 3000, 10_000])
def test_lists_in_lists_without_end(opening: str, levels: int) -> None:
    assert "more than 32 lists and mappings in each other" in refused(
        f"parties: {opening * levels}" if opening != "- " else opening * levels
    )


def test_a_chain_of_aliases() -> None:
    lines = ["a0: &a0 [x]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 1200))]
    assert refused("\n".join([*lines, "parties: *a1199", "session: s"]))
    assert refused("parties: &a [*a, *a]\nsession: s\n")
    assert refused("parties: &a {name: *a}\nsession: s\n")


@pytest.mark.parametrize(
    "text", ["a\0b", "session: \x07", "\x9b", "a: !!python/name:os.system", "%", "a: *b"]
)
def test_what_is_no_yaml(text: str) -> None:
    assert re.search("not valid YAML .*: fix that line", refused(text))


@given(st.text() | st.lists(st.sampled_from("[]{}:,-&*!|>'\"%@#? \n\tab<~01.")).map("".join))
def test_any_text_is_a_cluster_or_the_one_error(text: str) -> None:
    with contextlib.suppress(ConfigError):
        load(text)


def test_what_safe_dump_writes_is_read_back() -> None:
    content = {"session": "007", "parties": ["no", "2026-11-29"], "broker": None, "devices": {}}
    assert load(yaml.safe_dump(content)).party_names == ("no", "2026-11-29")


def test_a_file_that_is_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", tmp_path, Path("/dev/zero")):
        with pytest.raises(ConfigError, match=r"is a .*, not a file: check the path"):
            load_cluster(path)

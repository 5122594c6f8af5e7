"""`Offer`: every field checked, whoever made it, and the same after a journey."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from redislink.errors import ConfigError, ValueDecodeError
from redislink.jobs.offer import MOST_SOURCE, Offer, job_session, new_job_id
from redislink.values import decode_value_untrusted, encode_value
from tests.jobs.examples import an_offer

_MISSING = object()


def test_an_offer_survives_the_journey() -> None:
    source = b"packed"
    offer = an_offer(
        source=source,
        program=f"sha256:{hashlib.sha256(source).hexdigest()}",
        arguments={"epochs": 3, "plaintext": True, "rate": 0.5, "seed": [1, 2]},
    )
    received = Offer.from_value_untrusted(decode_value_untrusted(encode_value(offer.to_value())))
    assert received == offer
    assert received.digest() == offer.digest()
    assert received.digest() != an_offer().digest()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("job", "J000000000000"),
        ("job", "j00000000000"),
        ("job", "j000000000000\n"),
        ("job", 7),
        ("driver", ""),
        ("driver", "../up"),
        ("driver", "a\x1b[2Jb"),
        ("driver", ["coordinator"]),
        ("issued", -1),
        ("issued", True),
        ("issued", 1e9),
        ("issued", 1 << 60),
        ("expires", 0),
        ("expires", 1_790_000_000 + 400 * 86400),
        ("program", "0" * 64),
        ("program", "sha256:" + "A" * 64),
        ("program", b"sha256:"),
        ("program_name", "lr train"),
        ("program_name", None),
        ("program_name", np.zeros(3)),
        ("source", b"another program"),
        ("source", "text"),
        ("source", bytes(MOST_SOURCE + 1)),
        ("arguments", "epochs"),
        ("arguments", None),
        ("arguments", {"--epochs": 3}),
        ("arguments", {"a b": 3}),
        ("arguments", {3: 3}),
        ("arguments", {"epochs": {"a": 1}}),
        ("arguments", {"epochs": [[1]]}),
        ("arguments", {"epochs": np.float64(1)}),
        ("arguments", {"epochs": 1 << 70}),
        ("arguments", {"rate": float("nan")}),
        ("arguments", {"name": "a\0b"}),
        ("arguments", {"name": "x" * 5000}),
        ("arguments", ["x" * 4000] * 20),
        ("arguments", ["x"] * 1001),
        ("arguments", [True]),
        ("arguments", [b"x"]),
        ("data", ["patients"]),
        ("data", {"dave": ["patients"]}),
        ("data", {"alice": "patients"}),
        ("data", {"alice": ["../patients"]}),
        ("data", {3: ["patients"]}),
        ("parties", ["alice"]),
        ("parties", ["alice", "alice"]),
        ("parties", "ab"),
        ("parties", [f"p{n}" for n in range(65)]),
        ("devices", ["spu", 3]),
        ("devices", {"spu": 1}),
        ("results", [["weights"]]),
        ("results", ["/etc/passwd"]),
        ("unknown", 1),
        ("job", _MISSING),
        ("devices", _MISSING),
    ],
)
def test_what_is_not_an_offer_is_found(field: str, value: Any) -> None:
    offer = an_offer().to_value()
    if value is _MISSING:
        del offer[field]
    else:
        offer[field] = value
    with pytest.raises(ValueDecodeError, match="an offer") as found:
        Offer.from_value_untrusted(offer)
    assert str(found.value).isprintable()
    assert len(str(found.value)) < 400


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.integers(), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.sampled_from([f.name for f in dataclasses.fields(Offer)]), _json)
def test_a_field_of_any_kind_gives_an_offer_or_that_one_error(field: str, value: Any) -> None:
    given_value = an_offer().to_value() | {field: value}
    try:
        offer = Offer.from_value_untrusted(given_value)
    except ValueDecodeError:
        return
    assert offer.to_value() == given_value


def test_an_offer_made_here_is_checked_too() -> None:
    with pytest.raises(ConfigError, match="expires"):
        an_offer(expires=0)


def test_arguments_become_words() -> None:
    assert an_offer(arguments=["--epochs", 3, -0.5]).argv() == ["--epochs", "3", "-0.5"]
    options = {
        "epochs": 3, "plaintext": True, "quiet": False, "none": None, "seed": [1, "two", True],
        "name": "--plaintext",
    }  # fmt: skip
    assert an_offer(arguments=options).argv() == [
        "--epochs=3", "--plaintext", "--seed=1", "--seed=two", "--seed", "--name=--plaintext",
    ]  # fmt: skip


def test_data_sets_are_those_of_a_party() -> None:
    assert an_offer(data={"alice": ("patients",)}).data_of("alice") == ("patients",)
    assert an_offer(data={"alice": ("patients",)}).data_of("bob") == ()


def test_a_job_id_is_random_and_names_a_session() -> None:
    assert new_job_id(lambda letters: letters[-1]) == "j999999999999"
    assert new_job_id() != new_job_id()
    assert job_session("trial", "j999999999999") == "trial.j999999999999"
    with pytest.raises(ConfigError, match="at most 50 characters"):
        job_session("s" * 51, "j999999999999")
    with pytest.raises(ConfigError, match="job"):
        job_session("trial", "../../etc")

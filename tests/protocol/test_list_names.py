"""List names: every name and tag round-trips, no two share a list, no glob can be smuggled in."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redislink.errors import ConfigError, FrameError, UsageError
from redislink.protocol import list_names

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", fullmatch=True)
epochs = st.just("0") | st.from_regex(r"[0-9a-f]{16}(\.[1-9][0-9]{0,9})?", fullmatch=True)
tags = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=100)
paths = st.tuples(names, names, names, epochs, tags)


@given(paths)
def test_every_list_name_round_trips(path):
    assert list_names.parse_list_untrusted(list_names.data_list(*path)) == path


@given(paths, paths)
def test_no_two_paths_share_a_list(one, other):
    assert (list_names.data_list(*one) == list_names.data_list(*other)) == (one == other)


@given(tags)
def test_an_encoded_tag_holds_nothing_that_a_glob_or_a_name_gives_a_meaning(tag):
    encoded = list_names.encode_tag(tag).decode()
    assert not re.search(r"[{}*?\[\]\\!^\s]", encoded)
    assert list_names.decode_tag_untrusted(encoded) == tag


@given(names, names, names, epochs, tags)
def test_no_application_tag_reaches_a_list_of_the_transport(session, dst, src, epoch, tag):
    reserved = {
        list_names.hello_list(session, dst, src),
        list_names.control_list(session, dst, src, epoch),
        list_names.claim_key(session, dst),
        list_names.doctor_list(session, dst, src, epoch),
        list_names.status_key(session, dst),
    }
    assert list_names.data_list(session, dst, src, epoch, tag) not in reserved
    for name in reserved:
        assert list_names.parse_list_untrusted(name)[4].startswith("!")


@given(st.binary(max_size=200) | tags.map(str.encode))
def test_any_bytes_parse_or_give_the_one_error(name):
    try:
        path = list_names.parse_list_untrusted(name)
    except FrameError:
        return
    assert path[4].startswith("!") or list_names.data_list(*path) == name


@pytest.mark.parametrize("tag", ["root:P2P-7:0->1", "root:3:ALLGATHER", "root-1:P2P-2:1->0"])
def test_yacl_keys_stay_readable(tag):
    assert list_names.encode_tag(tag) == tag.encode()


@pytest.mark.parametrize(
    "encoded", ["%3a", "%41", "%", "%zz", "%3A", "!hello", "a*", "%FF", "", "\n", "a\n"]
)
def test_encodings_that_are_not_ours_are_refused(encoded):
    with pytest.raises(FrameError):
        list_names.decode_tag_untrusted(encoded)


@pytest.mark.parametrize("name", ["", "a:b", "ü", "a" * 65, "a b", "a\n", "{a}", "*", None, 3])
@pytest.mark.parametrize("first", ["", ".", "-", "_"])
def test_names_are_checked_at_the_door(name, first):
    with pytest.raises(ConfigError, match="party name"):
        list_names.check_name(first + name if isinstance(name, str) else name, "party")


@pytest.mark.parametrize("name", [".", "..", "-rf", "--help", ".env", "_", "__pycache__", "..."])
def test_names_are_no_directories_options_or_hidden_files(name):
    with pytest.raises(ConfigError, match="begin with a letter or digit"):
        list_names.check_name(name, "session")
    with pytest.raises(FrameError):
        list_names.parse_list_untrusted(f"rl:{{{name}:bob}}:alice:0:!hello".encode())


@pytest.mark.parametrize("name", ["a", "7", "a.", "A-_.9", "a" * 64])
def test_names_that_are_valid(name):
    assert list_names.check_name(name, "party") == name


@pytest.mark.parametrize("tag", ["", "x" * 513, "ü" * 257, "\ud800", None, b"bytes", 7])
def test_tags_that_cannot_be_used_are_refused(tag):
    with pytest.raises(UsageError, match="tag"):
        list_names.encode_tag(tag)


def test_an_inbox_lies_in_one_cluster_slot():
    slots = {
        re.search(rb"\{(.*?)\}", name).group(1)
        for name in (
            list_names.data_list("s", "bob", "alice", "0" * 16, "t"),
            list_names.control_list("s", "bob", "carol", "1" * 16),
            list_names.hello_list("s", "bob", "alice"),
            list_names.claim_key("s", "bob"),
            list_names.doctor_list("s", "bob", "alice", "2" * 16),
            list_names.status_key("s", "bob"),
        )
    }
    assert slots == {b"s:bob"}


def test_lists_of_one_inbox_begin_alike_and_those_of_others_otherwise():
    def of(session, dst):
        names = [
            list_names.data_list(session, dst, "carol", "0123456789abcdef", "a}tag:{b"),
            list_names.hello_list(session, dst, "dave"),
            list_names.claim_key(session, dst),
        ]
        (inbox,) = {list_names.inbox_of(name) for name in names}
        assert all(name.startswith(inbox + b":") for name in names)
        return inbox

    assert (
        len({of(session, dst) for session in ("s", "t") for dst in ("alice", "alic", "bob")}) == 6
    )


EPOCH = "0123456789abcdef"


@pytest.mark.parametrize(
    ("make", "name", "parsed"),
    [
        (
            lambda: list_names.data_list("s", "bob", "alice", EPOCH, "a b"),
            b"rl:{s:bob}:alice:0123456789abcdef:a%20b",
            ("s", "bob", "alice", EPOCH, "a b"),
        ),
        (
            lambda: list_names.control_list("s", "bob", "alice", EPOCH),
            b"rl:{s:bob}:alice:0123456789abcdef:!control",
            ("s", "bob", "alice", EPOCH, "!control"),
        ),
        (
            lambda: list_names.hello_list("s", "bob", "alice"),
            b"rl:{s:bob}:alice:0:!hello",
            ("s", "bob", "alice", "0", "!hello"),
        ),
        (
            lambda: list_names.mark_list("s", "bob", "alice"),
            b"rl:{s:bob}:alice:0:!mark",
            ("s", "bob", "alice", "0", "!mark"),
        ),
        (
            lambda: list_names.doctor_list("s", "bob", "alice"),
            b"rl:{s:bob}:alice:0:!doctor",
            ("s", "bob", "alice", "0", "!doctor"),
        ),
        (
            lambda: list_names.claim_key("s", "bob"),
            b"rl:{s:bob}:bob:0:!claim",
            ("s", "bob", "bob", "0", "!claim"),
        ),
        (
            lambda: list_names.status_key("s", "bob"),
            b"rl:{s:bob}:bob:0:!status",
            ("s", "bob", "bob", "0", "!status"),
        ),
    ],
)
def test_names_on_the_broker_do_not_change(make, name, parsed):
    """Parties of other versions look for them, and ACL rules of other hands name them."""
    assert make() == name
    assert list_names.parse_list_untrusted(name) == parsed
    assert list_names.inbox_of(name) == b"rl:{s:bob}"
    assert name.startswith(list_names.session_prefix("s"))
    assert name.startswith(list_names.party_prefix("s", "bob"))
    assert name.startswith(list_names.sender_prefix("s", "bob", parsed[2]))
    assert name.startswith(list_names.inbox_prefix("s", "bob", *parsed[2:4]))


@pytest.mark.parametrize("edition", [1, 9, 10, (1 << 31) - 1])
@pytest.mark.parametrize("tag", ["t", "root:P2P-7:0->1", ":", "a.1:b"])
def test_editions_have_lists_of_their_own(edition, tag):
    prefix = list_names.inbox_prefix("s", "bob", "alice", EPOCH)
    assert list_names.of_edition(prefix, 0) == prefix
    first = prefix + list_names.encode_tag(tag)
    name = list_names.of_edition(prefix, edition) + list_names.encode_tag(tag)
    epoch = f"{EPOCH}.{edition}"
    assert list_names.parse_list_untrusted(name) == ("s", "bob", "alice", epoch, tag)
    assert list_names.inbox_of(name) == list_names.inbox_of(first), "one Cluster slot"
    assert name.startswith(list_names.sender_prefix("s", "bob", "alice")), "what users may push to"
    for any_edition in (first, name):
        assert list_names.in_first_edition(any_edition, len(prefix)) == first


@pytest.mark.parametrize(
    "epoch",
    [
        "",
        "1",
        "00",
        EPOCH[1:],
        EPOCH + "0",
        EPOCH.upper(),
        "0\n",
        "0.1",
        EPOCH + ".",
        EPOCH + ".0",
        EPOCH + ".01",
        EPOCH + ".x",
    ],
)
def test_epochs_are_checked_at_the_door(epoch):
    with pytest.raises(UsageError, match="16 hex digits, or '0'"):
        list_names.data_list("s", "bob", "alice", epoch, "t")
    with pytest.raises(FrameError):
        list_names.parse_list_untrusted(f"rl:{{s:bob}}:alice:{epoch}:t".encode())


@pytest.mark.parametrize("tag", ["x", "x" * 512, "ü" * 256])
def test_the_shortest_and_the_longest_tags_can_be_used(tag):
    assert list_names.decode_tag_untrusted(list_names.encode_tag(tag).decode()) == tag

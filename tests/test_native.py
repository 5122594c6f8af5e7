"""Leaves: each twin in C does what its definition in Python does, or leaves it to that.

A twin is called here with a stand-in for its definition, so that what it leaves is seen.
"""

from __future__ import annotations

import random
import sys
import types
from collections.abc import Callable, Iterator
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

import pytest

import hatch_build
from redislink import native
from redislink.broker import socket_wire, wire
from redislink.protocol import list_names, seal
from redislink.protocol.frame import Encoding, encode_whole_header

ROOT = Path(__file__).parent.parent
NAME = b"rl:{s:bob}:alice:0123456789abcdef:root:P2P-7:0->1"
KEY = seal.DataKey(bytes(range(32)))
LEFT = object()
LEAVES: dict[str, Callable[..., Any]] = {
    "encode_tag": list_names.encode_tag,
    "pack_push": wire.pack_push,
    "pack_blpops": wire.pack_blpops,
    "only_element": socket_wire.only_element,
    "seal_whole": seal.seal_whole,
    "open_whole": seal.open_whole,
}


@pytest.fixture(autouse=True)
def _twins_are_used() -> Iterator[None]:
    was = native.status().startswith("yes")
    native.use(True)
    yield
    native.use(was)


def definition_of(name: str) -> Callable[..., Any]:
    leaf = LEAVES[name]
    return getattr(leaf, "__self__", leaf)


def twin_of(name: str) -> Callable[..., Any]:
    """Call it to learn what the twin alone does: `LEFT` if it leaves that to the definition."""

    def left(*arguments: Any) -> Any:
        return LEFT

    left.__name__ = name
    return native.leaf(left)


def outcome(call: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    try:
        result = call(*arguments)
    except Exception as error:  # noqa: BLE001 - whatever it is, the other must raise it too
        return type(error), str(error)
    return type(result), result


def parts(value: Any) -> Any:
    """With the type of everything in it: bytes equal a bytearray, and 1 equals True."""
    if isinstance(value, list | tuple):
        return type(value), [parts(part) for part in value]
    return type(value), bytes(value) if isinstance(value, memoryview) else value


def compare(name: str, cases: Iterator[tuple[Any, ...]]) -> int:
    """Compare leaf, twin and definition. Return how many cases the twin did by itself."""
    twin, definition, own = twin_of(name), definition_of(name), 0
    for arguments in cases:
        expected = parts(outcome(definition, arguments))
        assert parts(outcome(LEAVES[name], arguments)) == expected, arguments
        alone = outcome(twin, arguments)
        if alone[1] is not LEFT:
            own += 1
            assert parts(alone) == expected, arguments
    return own


# -- what twins are fed -------------------------------------------------------------------------

chance = random.Random(21)
SIZES = (*range(301), 512, 513, 4096, 4097, 65499, 65535, 65536, 65537)
NUMBERS = (0, 1, 2, 255, 256, 2**31, 2**32 + 5, 2**63 - 1, 2**63, 2**64, -1, True, 1.0, None, "1")


class Text(str):
    __slots__ = ()


class Octets(bytes):
    __slots__ = ()


def octets(size: int) -> bytes:
    return chance.randbytes(size)


def of_any_type(raw: bytes) -> Iterator[Any]:
    yield from (raw, bytearray(raw), memoryview(raw), Octets(raw))


def odd() -> Iterator[Any]:
    yield from (None, 7, "text", b"", [], (), object, float("nan"))


def tags() -> Iterator[tuple[Any, ...]]:
    plain = list_names._PLAIN.decode()
    for size in (*range(1, 301), 511, 512, 513, 600):
        yield ("".join(chance.choices(plain, k=size)),)
        yield ("".join(chr(chance.randrange(0x20, 0x7F)) for _ in range(size)),)
    for code in (*range(256), 0x0416, 0x20AC, 0xD800, 0xDFFF, 0x1F600):
        yield (f"t{chr(code)}",)
    yield from (("",), (Text("tag"),), (), ("a", "b"), *((thing,) for thing in odd()))


def pushes() -> Iterator[tuple[Any, ...]]:
    for size in SIZES:
        yield octets(size % 5000), (b"head", octets(size)), 3_600_000
        yield NAME, (octets(size), b""), size
    for head in of_any_type(b"head"):
        for body in of_any_type(octets(64)):
            for name in of_any_type(NAME):
                yield name, (head, body), 60_000
    yield from ((NAME, (b"h", b"b"), ttl) for ttl in NUMBERS)
    yield from ((NAME, element, 1) for element in ([b"h", b"b"], (b"h",), (b"h", b"b", b"c")))
    yield from ((thing, (thing, b""), 1) for thing in odd())
    yield from ((), (NAME,), (NAME, (b"h", b"b")), (NAME, (b"h", b"b"), 1, 2))


def pops() -> Iterator[tuple[Any, ...]]:
    for count in (*range(40), 5000):
        names = [octets(chance.randrange(300)) for _ in range(count)]
        yield names, chance.random() * 10
        yield tuple(names), float(count)
    for seconds in (0.0, -0.0, 0.0005, 1e-9, 1e300, float("inf"), float("nan"), -1.5, 5, *NUMBERS):
        yield [NAME], seconds
    yield from (([name], 1.0) for name in (*of_any_type(NAME), octets(5000), *odd()))
    yield from ((things, 1.0) for things in (NAME, {NAME: 1}, {NAME}, None, range(2)))
    yield from ((), ([NAME],), ([NAME], 1.0, 2))


def reply(name: bytes, element: bytes, size: bytes | None = None) -> bytes:
    written = b"%d" % len(element) if size is None else size
    return b"*2\r\n$%d\r\n%b\r\n$%b\r\n%b\r\n" % (len(name), name, written, element)


def replies() -> Iterator[tuple[Any, ...]]:
    for size in SIZES:
        yield reply(NAME, octets(size)), NAME
        yield reply(octets(size), b"e"), octets(size)
    for element in (b"", b"e", b"\r\n", b"\r", b"$3\r\nabc\r\n", octets(100)):
        whole = reply(NAME, element)
        yield from ((whole[:end], NAME) for end in range(len(whole) + 1))
        yield from ((whole + more, NAME) for more in (b"\r", b"\n", b"*2\r\n", b"x"))
        yield whole, NAME[:-1]
        yield whole, NAME + b"1"
        for place in range(len(whole)):
            broken = bytearray(whole)
            broken[place] = chance.randrange(256)
            yield bytes(broken), NAME
    for size in (b"+3", b"03", b" 3", b"3 ", b"-1", b"", b"9" * 30, b"3\r", b"\r\n3", b"2", b"4"):
        yield reply(NAME, b"abc", size), NAME
    # A size that would fit if the line had an end.
    head = reply(NAME, b"").rpartition(b"$")[0] + b"$"
    yield from (
        (head + b"%d" % size + b"x" * more, NAME) for size in range(120) for more in range(3)
    )
    yield from ((came, NAME) for came in (b"", b"*-1\r\n", b"-ERR no\r\n", b":1\r\n"))
    yield from ((came, NAME) for came in (*of_any_type(reply(NAME, b"abc")), *odd()))
    yield from ((reply(NAME, b"abc"), name) for name in (*of_any_type(NAME), *odd()))


def bodies() -> Iterator[tuple[Any, ...]]:
    raw, value = Encoding
    for size in SIZES:
        yield KEY, NAME, size + 1, chance.choice((raw, value)), size, octets(size)
        yield KEY, octets(size), chance.randrange(2**63), raw, chance.randrange(2**63), b"body"
    for number in NUMBERS:
        yield KEY, NAME, number, raw, 0, b"body"
        yield KEY, NAME, 1, raw, number, b"body"
        yield KEY, NAME, 1, number, 0, b"body"
    for thing in (*of_any_type(b"bytes"), *odd()):
        yield KEY, thing, 1, raw, 0, b"body"
        yield KEY, NAME, 1, raw, 0, thing
    yield from ((KEY,), (KEY, NAME, 1, raw, 0), (KEY, NAME, 1, raw, 0, b"", b""))


def elements() -> Iterator[tuple[Any, ...]]:
    def sealed(name: bytes, seq: int, size: int) -> bytes:
        return b"".join(definition_of("seal_whole")(KEY, name, seq, Encoding.RAW, 5, octets(size)))

    for size in SIZES:
        yield KEY, NAME, sealed(NAME, size + 1, size)
        yield KEY, octets(size), octets(size)
        name = octets(size)
        yield KEY, name, sealed(name, chance.randrange(1, 2**63), 64)
        yield KEY, name[:-1], sealed(name, 7, 64)
    element = sealed(NAME, 7, 64)
    for bit in range(8 * len(element)):
        changed = bytearray(element)
        changed[bit // 8] ^= 1 << bit % 8
        yield KEY, NAME, bytes(changed)
    yield from ((KEY, NAME, element[:end]) for end in range(len(element)))
    yield from ((KEY, NAME, element + octets(more)) for more in range(1, 20))
    header = encode_whole_header(7, Encoding.RAW, 5)
    for place in range(len(header)):  # sealed by the peer itself, with a header of its own
        for changed in (0, 1, 2, 127, 128, 255):
            other = header[:place] + bytes([changed]) + header[place + 1 :]
            nonce = seal._nonce(0, int.from_bytes(other[13:21], "little"))
            yield KEY, NAME, other + KEY.aes.encrypt(nonce, b"body", NAME + other)
    yield KEY, NAME, sealed(NAME, 0, 64)
    yield from ((KEY, NAME, thing) for thing in (*of_any_type(element), *odd()))
    yield from ((KEY, name, element) for name in (*of_any_type(NAME), *odd()))
    yield from ((KEY,), (KEY, NAME), (KEY, NAME, element, 1), (object(), NAME, element))


CASES = {
    "encode_tag": tags,
    "pack_push": pushes,
    "pack_blpops": pops,
    "only_element": replies,
    "seal_whole": bodies,
    "open_whole": elements,
}


@pytest.mark.parametrize("name", LEAVES)
def test_a_twin_does_what_its_definition_does(name: str) -> None:
    own = compare(name, CASES[name]())
    assert own > 50 if native.is_complete() else own == 0


# -- leaves -------------------------------------------------------------------------------------


def test_the_usual_message_never_reaches_a_definition() -> None:
    if not native.is_complete():
        return
    header, body = twin_of("seal_whole")(KEY, NAME, 7, Encoding.RAW, 5, b"x" * 64)
    assert twin_of("open_whole")(KEY, NAME, header + body) == (7, Encoding.RAW, 5, b"x" * 64)
    assert twin_of("encode_tag")("root:P2P-7:0->1") == b"root:P2P-7:0->1"
    assert twin_of("pack_push")(NAME, (header, body), 3_600_000) is not LEFT
    assert twin_of("pack_blpops")([NAME] * 16, 5.0) is not LEFT
    assert twin_of("only_element")(reply(NAME, body), NAME) == body


def test_a_leaf_is_called_as_its_definition_is() -> None:
    assert wire.pack_blpops(names=(NAME,), seconds=1.0) == wire.pack_blpops((NAME,), 1.0)
    assert list_names.encode_tag.__name__ == "encode_tag"
    assert native.leaf(definition_of) is definition_of, "no twin has that name"


def test_a_leaf_turned_off_is_its_definition() -> None:
    twin = twin_of("encode_tag")
    native.use(False)
    assert twin("tag") is LEFT
    assert not native.status().startswith("yes")
    assert list_names.encode_tag("tag") == b"tag"


@pytest.mark.parametrize("name", LEAVES)
def test_a_leaf_keeps_nothing_of_what_passes_it(name: str) -> None:
    """Neither of its arguments, nor of results that it drops."""
    for arguments in [*CASES[name]()][::7]:
        # Small numbers and the like are everybody's.
        counted = [thing for thing in arguments if type(thing) in (bytes, list, tuple) and thing]
        held = [*map(sys.getrefcount, counted)]
        for _ in range(5):
            outcome(LEAVES[name], arguments)
        assert [*map(sys.getrefcount, counted)] == held, arguments


@pytest.mark.parametrize(
    "arguments",
    [(), (b"k" * 31, b"h" * 37, (1,)), (b"k" * 32, b"h" * 36, (1,)), (b"k" * 32, b"h" * 37, ())],
)
def test_a_key_in_c_checks_what_it_is_made_of(arguments: tuple[Any, ...]) -> None:
    if native.is_complete():
        with pytest.raises((TypeError, ValueError)):
            native.Cipher(*arguments)


def test_a_key_in_c_is_set_once() -> None:
    if native.is_complete():
        with pytest.raises(ValueError, match="once"):
            KEY.__init__(bytes(32))  # type: ignore[misc]


def test_a_key_that_was_never_set_leaves_all_to_the_definition() -> None:
    empty = seal.DataKey.__new__(seal.DataKey)
    assert twin_of("seal_whole")(empty, NAME, 1, Encoding.RAW, 0, b"body") is LEFT
    assert twin_of("open_whole")(empty, NAME, bytes(100)) is LEFT


# -- how it is built ----------------------------------------------------------------------------


def build(target: Path) -> str:
    return hatch_build._compile(ROOT, target)


def test_it_is_built_wherever_it_can_be(tmp_path: Path) -> None:
    assert native.is_complete() == (build(tmp_path / "native.so") == "")


def test_without_headers_of_openssl_all_but_sealing_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hatch_build, "_WAYS", (("-DWITH_OPENSSL", "-no-such-option"), ()))
    target = tmp_path / hatch_build._NAME
    if build(target):
        assert not native.is_complete()
        return
    loader = ExtensionFileLoader("redislink._native", str(target))
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None
    extension = module_from_spec(spec)
    loader.exec_module(extension)
    assert extension.OPENSSL == ""
    assert not hasattr(extension, "Cipher")
    assert extension.leaf(definition_of("encode_tag"))("tag") == b"tag"
    sealing = definition_of("seal_whole")
    assert extension.leaf(sealing) is sealing


def hook(root: Path) -> hatch_build.NativeHook:
    (root / "redislink").mkdir()
    (root / "redislink" / "_native.c").write_bytes((ROOT / "redislink" / "_native.c").read_bytes())
    said = types.SimpleNamespace(display_info=lambda text: print(text, file=sys.stderr))
    return hatch_build.NativeHook(str(root), {}, None, None, str(root), "wheel", app=said)


@pytest.mark.parametrize("lacks", ["compiler", "Python.h", "sense"])
@pytest.mark.parametrize("version", ["editable", "standard"])
def test_without_it_redislink_is_installed_as_python(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    lacks: str,
    version: str,
) -> None:
    builder = hook(tmp_path)
    stale = tmp_path / "redislink" / hatch_build._NAME
    stale.touch()
    if lacks == "compiler":
        monkeypatch.setattr(hatch_build.sysconfig, "get_config_var", lambda _: "no-such-cc -shared")
    elif lacks == "Python.h":
        monkeypatch.setattr(hatch_build.sysconfig, "get_path", lambda _: str(tmp_path))
    else:
        (tmp_path / "redislink" / "_native.c").write_text("#error not today\n")
    data: dict[str, Any] = {"force_include": {}, "pure_python": True, "infer_tag": False}
    builder.initialize(version, data)
    assert data == {"force_include": {}, "pure_python": True, "infer_tag": False}
    assert stale.exists() == (version == "standard"), "a wheel does not touch the checkout"
    assert "no native leaves: " in capsys.readouterr().err

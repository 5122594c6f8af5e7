"""Containers of what is put on a device: taken apart at the owner, put together at every party.

What travels is a tree of dicts, lists, tuples and None with the numbers of the arrays in their
places. A namedtuple travels as a tuple: the place and name of its class, then in turn the name of
each field and what is in it. Nothing else in a tree is a str, but keys.

Rules:
- What the communicator or JAX would refuse later is refused when it is taken apart, at the owner,
  before anything is sent.
- A class that a peer names is looked for in modules that this process has imported already; it
  has to be a namedtuple with these fields, and none of its code is run.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, Final

from redislink.errors import UsageError
from redislink.spu.arrays import Array
from redislink.values import MAX_CONTAINERS, MAX_DEPTH

_MOST_DEPTH: Final = MAX_DEPTH - 4
"""A step's message has containers of its own around the tree."""
_CONTAINERS_PER_ARRAY: Final = 4
"""That describe it, or hold its share, in a step's message."""


class Unknown(Exception):
    """A tree has a namedtuple of which this process has no class. Its text is for the user."""


def take_apart(value: Any, hold: Callable[[Any, str], Array]) -> tuple[Any, list[Array]]:
    """The tree of a pytree, and its arrays.

    Args:
        value: arrays in dicts, lists, tuples and namedtuples.
        hold: makes a leaf an array, or refuses it; gets the leaf and its place, such as
            ``['age'][0]``.

    Raises:
        UsageError: a container cannot travel, or would be no pytree of JAX.
    """
    apart = _Apart(hold)
    tree = apart.take(value, "", 1)
    return tree, apart.arrays


class _Apart:
    def __init__(self, hold: Callable[[Any, str], Array]) -> None:
        self.arrays: list[Array] = []
        self._hold = hold
        self._containers = 0

    def take(self, value: Any, place: str, depth: int) -> Any:
        if type(value) is dict:
            self._enter(place, depth)
            _check_keys(value, place)
            return {
                key: self.take(part, f"{place}[{key!r:.80}]", depth + 1)
                for key, part in value.items()
            }
        if type(value) in (list, tuple):
            self._enter(place, depth)
            return type(value)(
                self.take(part, f"{place}[{number}]", depth + 1)
                for number, part in enumerate(value)
            )
        if is_namedtuple(type(value)):
            self._enter(place, depth)
            packed = [_name_of(type(value), place)]
            for field, part in zip(value._fields, value, strict=True):
                packed += [field, self.take(part, f"{place}.{field}", depth + 1)]
            return tuple(packed)
        if value is None:
            return None
        if isinstance(value, dict | list | tuple | set | frozenset):
            raise UsageError(
                f"value{place} is a {type(value).__name__}, which does not arrive as one: give a "
                "dict, a list, a tuple or a namedtuple"
            )
        self.arrays.append(self._hold(value, place))
        self._check_size()
        return len(self.arrays) - 1

    def _enter(self, place: str, depth: int) -> None:
        if depth > _MOST_DEPTH:
            raise UsageError(
                f"value{place:.60}… is nested deeper than {_MOST_DEPTH}, or holds itself: flatten "
                "it, or take the circle out"
            )
        self._containers += 1
        self._check_size()

    def _check_size(self) -> None:
        used = self._containers + _CONTAINERS_PER_ARRAY * len(self.arrays) + 16
        if used > MAX_CONTAINERS:
            raise UsageError(
                f"value has {len(self.arrays)} arrays in {self._containers} containers so far, "
                "more than one call takes: a list of numbers is an array for each, so make it one "
                "with numpy.asarray"
            )


def is_namedtuple(cls: type) -> bool:
    """True for what ``collections.namedtuple`` and ``typing.NamedTuple`` make."""
    if not issubclass(cls, tuple):
        return False
    fields = getattr(cls, "_fields", None)
    return isinstance(fields, tuple) and all(type(field) is str for field in fields)


def _name_of(cls: type, place: str) -> str:
    name = f"{cls.__module__}:{cls.__qualname__}"
    if _find(name) is not cls:
        raise UsageError(
            f"value{place} is a {cls.__qualname__} of {cls.__module__}, where the other parties "
            "cannot find this class: define it at the top level of a module that all import"
        )
    return name


def _find(name: str) -> type | None:
    """The class that an imported module has by this name; None if there is no such class.

    Never by getattr, which may run code of the module, and not in a module that loads itself when
    it is looked at.
    """
    module_name, _, path = name.partition(":")
    module = sys.modules.get(module_name)
    if type(module) is not ModuleType:
        return None
    names: Any = vars(module)
    found: Any = None
    for part in path.split("."):
        found = names.get(part)
        if not isinstance(found, type):
            return None
        names = vars(found)
    return found if is_namedtuple(found) else None


def _check_keys(value: dict[Any, Any], place: str) -> None:
    kinds = {type(key) for key in value}
    if kinds - {str, int}:
        raise UsageError(f"value{place} has keys that are not str or int: rename them")
    if len(kinds) > 1:
        raise UsageError(
            f"value{place} has keys of both str and int, which JAX cannot sort: rename them"
        )
    for key in value:
        if type(key) is int and not -(1 << 63) <= key < 1 << 63:
            raise UsageError(f"value{place} has an int key of more than 64 bits: rename it")
        if type(key) is str and not _is_utf8(key):
            raise UsageError(f"value{place} has a key with a lone surrogate: rename it")


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def count_leaves_untrusted(tree: Any) -> int:
    """Leaves of what `take_apart` gave, by a peer; -1 if it is not such a tree.

    ``tree`` is a decoded value, so its depth is bounded.
    """
    found: list[Any] = []

    def visit(node: Any) -> bool:
        if type(node) is dict:
            return all(map(visit, node.values()))
        if type(node) is tuple and node and type(node[0]) is str:
            fields = node[1::2]
            whole = len(node) % 2 == 1 and all(type(field) is str for field in fields)
            return whole and all(map(visit, node[2::2]))
        if type(node) in (list, tuple):
            return all(map(visit, node))
        if node is not None:
            found.append(node)
        return True

    whole = visit(tree)
    in_order = all(type(f) is int and f == number for number, f in enumerate(found))
    return len(found) if whole and in_order else -1


def fill(tree: Any, leaves: Sequence[Any]) -> Any:
    """The pytree with these leaves.

    Raises:
        Unknown: it has a namedtuple that this process does not have.
    """
    if tree is None:
        return None
    if isinstance(tree, dict):
        return {key: fill(part, leaves) for key, part in tree.items()}
    if isinstance(tree, tuple) and tree and isinstance(tree[0], str):
        cls = _find(tree[0])
        if cls is None or cls._fields != tree[1::2]:  # type: ignore[attr-defined]
            raise Unknown(tree[0])
        return tuple.__new__(cls, (fill(part, leaves) for part in tree[2::2]))
    if isinstance(tree, list | tuple):
        return type(tree)(fill(part, leaves) for part in tree)
    return leaves[tree]

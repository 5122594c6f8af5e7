"""Containers put on a device: taken apart at the owner, and put together again at every party.

The owner sends a tree of dicts, lists, tuples and None, with numbers in the places of the arrays. A
namedtuple is sent as a tuple: the module and name of its class, then the name and content of each
field in turn. Apart from that, only keys of a tree are strings.

Rules:
- Whatever the communicator or JAX would refuse later is refused at the owner, when it is taken
  apart, before anything is sent.
- A class that a peer names is looked up only in modules that this process has already imported. It
  must be a namedtuple with these fields, and none of its code is run.
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
"""Less than the communicator's limit: a step's message has containers around the tree."""
_CONTAINERS_PER_ARRAY: Final = 4
"""Containers in a step's message that describe an array, or hold its share."""


class Unknown(Exception):
    """This process does not have the class of a namedtuple in a tree. The text is for the user."""


def take_apart(value: Any, hold: Callable[[Any, str], Array]) -> tuple[Any, list[Array]]:
    """Take a pytree apart, into its tree and its arrays.

    Args:
        value: arrays in dicts, lists, tuples and namedtuples.
        hold: converts a leaf to an array, or refuses it. It gets the leaf and its place, such as
            ``['age'][0]``.

    Raises:
        UsageError: a container cannot be sent, or is not a pytree of JAX.
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
                f"value{place} is a {type(value).__name__}, which would not arrive as one: pass a "
                "dict, a list, a tuple or a namedtuple"
            )
        self.arrays.append(self._hold(value, place))
        self._check_size()
        return len(self.arrays) - 1

    def _enter(self, place: str, depth: int) -> None:
        if depth > _MOST_DEPTH:
            raise UsageError(
                f"value{place:.60}… is nested deeper than {_MOST_DEPTH}, or contains itself: "
                "flatten it, or remove the cycle"
            )
        self._containers += 1
        self._check_size()

    def _check_size(self) -> None:
        used = self._containers + _CONTAINERS_PER_ARRAY * len(self.arrays) + 16
        if used > MAX_CONTAINERS:
            raise UsageError(
                f"value has {len(self.arrays)} arrays in {self._containers} containers so far, "
                "more than one call can take: each number in a list is an array, so make the list "
                "one array with numpy.asarray"
            )


def is_namedtuple(cls: type) -> bool:
    """Whether ``collections.namedtuple`` or ``typing.NamedTuple`` made this class."""
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
    """The class with this name in an imported module; None if there is no such class.

    Does not use getattr, which may run the module's code, and skips modules that load lazily.
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
    """The number of leaves of a tree that a peer's `take_apart` made; -1 if it is not a tree.

    Args:
        tree: a decoded value, so its depth is bounded.
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
    """Make the pytree with these leaves from its tree.

    Raises:
        Unknown: this process does not have the class of a namedtuple.
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

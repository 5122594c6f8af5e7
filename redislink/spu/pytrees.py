"""Containers of what is put on a device: taken apart at the owner, put together at every party."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from redislink.errors import UsageError
from redislink.spu.arrays import Array, as_array


def take_apart(value: Any, leaves: list[Array]) -> Any:
    """The containers of a pytree, with the numbers of its leaves in their places."""
    if value is None:
        return None
    if type(value) is dict:
        if not all(type(key) in (str, int) for key in value):
            raise UsageError("a dict for private() has keys that are not str or int: rename them")
        return {key: take_apart(value[key], leaves) for key in value}
    if type(value) in (list, tuple):
        return type(value)(take_apart(part, leaves) for part in value)
    leaves.append(as_array(value))
    return len(leaves) - 1


def count_leaves(tree: Any) -> int:
    """Leaves of what `take_apart` gave, by a peer; -1 if they are not numbered 0, 1, ….

    ``tree`` is a decoded value, so its depth is bounded.
    """
    found: list[Any] = []

    def visit(node: Any) -> None:
        if isinstance(node, dict):
            for part in node.values():
                visit(part)
        elif isinstance(node, list | tuple):
            for part in node:
                visit(part)
        elif node is not None:
            found.append(node)

    visit(tree)
    in_order = all(type(f) is int and f == number for number, f in enumerate(found))
    return len(found) if in_order else -1


def fill(tree: Any, leaves: Sequence[Any]) -> Any:
    if tree is None:
        return None
    if isinstance(tree, dict):
        return {key: fill(part, leaves) for key, part in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(fill(part, leaves) for part in tree)
    return leaves[tree]

"""YAML that people write: no duplicate keys, names are text, every error has a line number.

Rules: ambiguous YAML is refused with its line; whatever the text, the only error is `ConfigError`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from redislink.errors import ConfigError
from redislink.text import one_line

_DEEPEST: Final = 32
"""Levels of lists and mappings; a cluster file has seven."""
_MOST_QUOTED: Final = 80
_TAG: Final = "tag:yaml.org,2002:"
_TEXT: Final = f"{_TAG}str"
_MERGE: Final = f"{_TAG}merge"
_BOOL: Final = f"{_TAG}bool"
_WHAT: Final = {
    _BOOL: "true or false",
    f"{_TAG}int": "a number",
    f"{_TAG}float": "a number",
    f"{_TAG}null": "nothing",
    f"{_TAG}timestamp": "a date",
}
"""What an unquoted scalar means to YAML, by its tag."""


class YamlText:
    """A YAML text that knows the place of each value.

    Attributes:
        content: what `yaml.safe_load` returns.
    """

    def __init__(self, text: str, source: str) -> None:
        """Parse a text.

        Args:
            text: the YAML.
            source: its name in errors.

        Raises:
            ConfigError: it is not valid YAML, nests too deep, or has a key twice or one that is
                not text.
        """
        self._source = source
        self._root: Node | None = None
        self.content: Any = None
        try:
            loader = _Loader(text)
            self._root = loader.get_single_node()
            for node in _nodes(self._root):
                if isinstance(node, MappingNode):
                    self._check_keys(node)
            if self._root is not None:
                self.content = loader.construct_document(self._root)
        except yaml.YAMLError as error:
            raise self._not_valid(error) from None
        except RecursionError:  # from a long chain of aliases
            raise ConfigError(
                f"{source}: its aliases (*) go too deep: write out what they stand for"
            ) from None

    def place(self, path: Sequence[int | str]) -> str:
        """``, line N`` of the value at a path of keys and indices, or of its nearest ancestor."""
        found = self._find(path)[0]
        return "" if found is self._root else _line(found)

    def misread(self, path: Sequence[int | str]) -> str:
        """What is wrong with a value that should be text, but that YAML reads as something else."""
        node, is_whole = self._find(path)
        if not is_whole or not isinstance(node, ScalarNode) or node.style is not None:
            return ""
        if not node.value:
            return "has nothing after it: fill it in, or remove it"
        return _in_quotes(node) if node.tag in _WHAT else ""

    def _find(self, path: Sequence[int | str]) -> tuple[Node | None, bool]:
        """The last node on the path that exists, and whether it is the end of the path."""
        node = self._root
        for part in path:
            inner = None
            if isinstance(node, MappingNode):
                inner = next((v for k, v in node.value if k.value == part), None)
            elif isinstance(node, SequenceNode) and isinstance(part, int):
                inner = node.value[part] if part < len(node.value) else None
            if inner is None:
                return node, False
            node = inner
        return node, True

    def _check_keys(self, node: MappingNode) -> None:
        first: dict[str, Node] = {}
        for key, _ in node.value:
            where = f"{self._source}{_line(key)}: "
            if not isinstance(key, ScalarNode):
                raise ConfigError(f"{where}a key is a text, not a list or mapping: fix that line")
            if key.tag not in (_TEXT, _MERGE):
                raise ConfigError(f"{where}the key {_in_quotes(key)}")
            if key.value in first:
                shown, line = (
                    one_line(key.value, _MOST_QUOTED),
                    first[key.value].start_mark.line + 1,
                )
                raise ConfigError(f"{where}{shown} is there twice, first in line {line}: keep one")
            first[key.value] = key

    def _not_valid(self, error: yaml.YAMLError) -> ConfigError:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None)
        return ConfigError(
            f"{self._source}{place}: not valid YAML ({problem or 'cannot be parsed'}): "
            "fix that line"
        )


class _Loader(yaml.SafeLoader):
    """A loader that adds the place to what PyYAML raises as RecursionError or ValueError."""

    _depth = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        self._depth += 1
        try:
            if self._depth > _DEEPEST:
                mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
                raise yaml.MarkedYAMLError(
                    problem=f"more than {_DEEPEST} lists and mappings in each other",
                    problem_mark=mark,
                )
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def construct_object(self, node: Node, deep: bool = False) -> Any:  # noqa: FBT001, FBT002 - PyYAML's
        try:
            return super().construct_object(node, deep)
        except (ValueError, OverflowError, TypeError):
            raise yaml.MarkedYAMLError(
                problem=_in_quotes(node), problem_mark=node.start_mark
            ) from None


def _nodes(root: Node | None) -> Iterator[Node]:
    """Every node once, however often aliases lead to it."""
    seen: set[int] = set()
    ahead = [root]
    while ahead:
        node = ahead.pop()
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        yield node
        if isinstance(node, SequenceNode):
            ahead += reversed(node.value)
        elif isinstance(node, MappingNode):
            ahead += [part for pair in reversed(node.value) for part in reversed(pair)]


def _line(node: Node | None) -> str:
    return "" if node is None else f", line {node.start_mark.line + 1}"


def _in_quotes(node: Node) -> str:
    shown = one_line(str(node.value), _MOST_QUOTED)
    what = _WHAT.get(node.tag, "something else")
    if node.tag == _BOOL:
        what = "true" if shown.lower() in ("yes", "true", "on") else "false"
    return f'{shown} means {what} in YAML: put it in quotes, as in "{shown}"'

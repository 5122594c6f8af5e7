"""What is changed in a module, one place at a time."""

from __future__ import annotations

import ast
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
_OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.FloorDiv: ast.Mult,
    ast.Div: ast.Mult, ast.Mod: ast.FloorDiv, ast.LShift: ast.RShift, ast.RShift: ast.LShift,
}  # fmt: skip
_NOT_RUN = {"annotation", "returns", "type_ignores"}
_TEXT = 90


@dataclass(frozen=True, slots=True)
class Mutant:
    """A module with one change.

    Attributes:
        line: where it is.
        change: what was there, and what is there now.
        function: (qualified name, first line) of the outermost function whose body has it; None
            if it shows only when the module is imported.
        code: the whole module's.
    """

    line: int
    change: str
    function: tuple[str, int] | None
    code: types.CodeType


def mutants(source: str, path: str) -> list[Mutant]:
    """All mutants of a module, in the order of its lines."""
    tree = ast.parse(source)
    return sorted(_of_children(tree, tree, path, "", None), key=lambda mutant: mutant.line)


def function_codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """The code of everything that a module defines, at any depth."""
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield constant
            yield from function_codes(constant)


def _of_children(
    tree: ast.Module, parent: ast.AST, path: str, prefix: str, function: tuple[str, int] | None
) -> Iterator[Mutant]:
    for field, value in ast.iter_fields(parent):
        if field in _NOT_RUN:
            continue
        inside = function
        if field == "body" and isinstance(parent, ast.FunctionDef) and function is None:
            first = min([parent.lineno, *(each.lineno for each in parent.decorator_list)])
            inside = (prefix, first)
        for place, child in enumerate(value if isinstance(value, list) else [value]):
            if not isinstance(child, ast.AST) or _is_docstring(child):
                continue
            for changed in _changed(child, parent, field):
                yield _mutant(tree, parent, field, place, child, changed, path, inside)
            name = prefix
            if isinstance(child, ast.ClassDef | ast.FunctionDef) and inside is None:
                name = f"{prefix}.{child.name}" if prefix else child.name
            yield from _of_children(tree, child, path, name, inside)


def _mutant(
    tree: ast.Module, parent: ast.AST, field: str, place: int, old: ast.AST, new: ast.AST,
    path: str, function: tuple[str, int] | None,
) -> Mutant:  # fmt: skip
    _put(parent, field, place, ast.fix_missing_locations(ast.copy_location(new, old)))
    try:
        code = compile(tree, path, "exec")
    finally:
        _put(parent, field, place, old)
    before, after = ast.unparse(old), ast.unparse(new)
    if isinstance(old, ast.Dict):  # where they differ matters
        start = next(n for n, (a, b) in enumerate(zip(before, after, strict=False)) if a != b)
        before, after = before[max(0, start - 40) :], after[max(0, start - 40) :]
    before, after = (text.partition("\n")[0][:_TEXT] for text in (before, after))
    return Mutant(old.lineno, f"`{before}` → `{after}`", function, code)  # type: ignore[attr-defined]


def _put(parent: ast.AST, field: str, place: int, node: ast.AST) -> None:
    value = getattr(parent, field)
    if isinstance(value, list):
        value[place] = node
    else:
        setattr(parent, field, node)


def _is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _changed(node: ast.AST, parent: ast.AST, field: str) -> Iterator[ast.AST]:
    """What may stand in place of a node."""
    match node:
        case ast.Compare(ops=[operator]) if type(operator) in _COMPARISONS:
            yield _with(node, ops=[_COMPARISONS[type(operator)]()])
        case ast.BoolOp(op=ast.And()):
            yield _with(node, op=ast.Or())
        case ast.BoolOp(op=ast.Or()):
            yield _with(node, op=ast.And())
        case (
            ast.UnaryOp(op=ast.Not(), operand=operand) | ast.UnaryOp(op=ast.USub(), operand=operand)
        ):
            yield operand
        case ast.BinOp(op=operator) | ast.AugAssign(op=operator) if type(operator) in _OPERATORS:
            yield _with(node, op=_OPERATORS[type(operator)]())
        case ast.Constant(value=bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(value=int(value) | float(value)) if not isinstance(
            parent, ast.FormattedValue
        ):
            yield ast.Constant(value + 1)
            yield ast.Constant(value - 1)
        case ast.Return(value=value) if value is not None and not _is_none(value):
            yield ast.Return(ast.Constant(None))
        case ast.Dict(values=[_, *after] as values):
            for place, (one, other) in enumerate(zip(values, after, strict=False)):
                if ast.unparse(one) != ast.unparse(other):
                    swapped = [*values[:place], other, one, *values[place + 2 :]]
                    yield _with(node, values=swapped)
    match node:
        case (
            ast.Expr(value=ast.Call() | ast.Yield())
            | ast.AugAssign()
            | ast.Raise()
            | ast.Delete()
            | ast.Continue()
            | ast.Break()
        ):
            yield ast.Pass()
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript(), *_]):
            yield ast.Pass()
    if field == "test" and not isinstance(parent, ast.Assert):
        yield ast.UnaryOp(ast.Not(), node)  # type: ignore[arg-type]


def _is_none(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _with(node: ast.AST, **fields: Any) -> ast.AST:
    return type(node)(**{**dict(ast.iter_fields(node)), **fields})

"""Functions of JAX arrays, traced and compiled for SPU, and what is kept of that.

Rules:
- Every party traces, and compiles too, also where the code is of no use to it: so an error comes
  at all of them, in the same call, before anything is sent.
- What was traced, with all constants in it, is what must be equal everywhere; the parts of its
  digest say which of them is not.
- What is kept is bounded by bytes: a loop that closes over new weights makes a function each time.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

import jax
import jax.extend.core
import numpy as np
from spu import api, libspu
from spu.utils import frontend

from redislink.errors import UsageError
from redislink.forking import renew_in_child
from redislink.session.steps import Part
from redislink.spu.arrays import DATA_TYPES, check_result, is_prng_key
from redislink.spu.ranges import Ranges
from redislink.spu.rewriting import rewrite

Function = Callable[..., Any]
_Kept = TypeVar("_Kept")

_MOST_KEPT: Final = 256
_MOST_BYTES: Final = 128 << 20
"""Of what one cache keeps: codes, and the constants of the functions that they are of."""
_ADDRESS: Final = re.compile(r" at 0x[0-9a-fA-F]+")


class Kept(Generic[_Kept]):
    """The newest of what was made, up to a number and a sum of bytes; the last one always."""

    def __init__(self) -> None:
        """Empty."""
        self._entries: OrderedDict[Hashable, tuple[_Kept, int]] = OrderedDict()
        self.total_bytes = 0

    def get(self, key: Hashable) -> _Kept | None:
        """What was put there, which is then the newest; None if it is not, or no longer, there.

        Raises:
            TypeError: ``key`` is not hashable.
        """
        entry = self._entries.get(key)
        if entry is None:
            return None
        self._entries.move_to_end(key)
        return entry[0]

    def put(self, key: Hashable, value: _Kept, size: int) -> None:
        """Keep ``value``, of ``size`` bytes, as the newest; the oldest go."""
        _, before = self._entries.pop(key, (None, 0))
        self._entries[key] = (value, size)
        self.total_bytes += size - before
        while len(self._entries) > 1 and (
            len(self._entries) > _MOST_KEPT or self.total_bytes > _MOST_BYTES
        ):
            _, (_, freed) = self._entries.popitem(last=False)
            self.total_bytes -= freed

    def __len__(self) -> int:
        return len(self._entries)


# SPU's compiler caches in a dict without a lock, and in a simulator the parties are threads.
# They share what is compiled: what was traced alike gives the same code.
_compile_lock = threading.Lock()
renew_in_child(_compile_lock)
_codes: Kept[bytes] = Kept()


@dataclass(frozen=True, eq=False)
class Compiled:
    """A function for arguments of certain shapes.

    Attributes:
        code: for SPU.
        parts: what must be equal everywhere.
        labels: of its arguments, for errors.
        out_tree: containers of the results.
        out_shapes: shape and dtype of each result.
        constant_bytes: of the arrays that the function closes over.
    """

    code: bytes
    parts: tuple[Part, ...]
    labels: tuple[str, ...]
    out_tree: Any
    out_shapes: tuple[tuple[tuple[int, ...], np.dtype[Any]], ...]
    constant_bytes: int

    @property
    def nbytes(self) -> int:
        """What keeping this and its function takes."""
        return len(self.code) + self.constant_bytes


def compile_function(
    flat: Function,
    leaves: Sequence[Any],
    secret: Sequence[bool],
    labels: tuple[str, ...],
    ranges: Ranges,
    where: str,
) -> Compiled:
    """Trace and compile a function.

    Args:
        flat: of arrays alone (`flatten`).
        leaves: its arguments, or what has their shapes and dtypes.
        secret: for each whether it is shares; else it is public.
        labels: for each what to call it in errors.
        ranges: what the device can hold.
        where: for what is raised: party and call.

    Raises:
        UsageError: SPU's compiler refuses it, or it returns, or closes over, what the device
            cannot hold.
        Exception: what JAX raises, with ``where`` in a note.
    """
    shapes = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]
    # Without this, JAX would cut 64-bit values to 32 bits.
    wide = any(leaf.dtype.itemsize == 8 for leaf in leaves) or jax.config.jax_enable_x64
    with _compile_lock, jax.enable_x64(wide):
        try:
            traced, out = jax.make_jaxpr(flat, return_shape=True)(*shapes)
            outputs, out_tree = jax.tree_util.tree_flatten(out)
            rewritten = rewrite(traced, out_tree, ranges.ring_bits)
            if rewritten is not None:
                rewritten.__name__ = flat.__name__
                flat, traced = rewritten, _trace_again(rewritten, shapes, where)
            _check(traced, out, ranges, where)
            text = str(traced)
            constants, constant_bytes = _digest_of_constants(traced)
            place = _digest(repr((text, constants, str(out_tree), shapes, tuple(secret), wide)))
            code = _codes.get(place)
            if code is None:
                code = _lower(flat, shapes, secret)
                _codes.put(place, code, len(code))
        except Exception as error:
            if isinstance(error, RuntimeError) and "spu::compiler" in str(error):
                raise UsageError(
                    f"{where}: SPU cannot compile it; its compiler names on stderr the operation "
                    "that it does not have: write that part with others, or compute it in the clear"
                ) from error
            error.add_note(where)
            raise
    return Compiled(
        code,
        (
            ("the function", _digest(_ADDRESS.sub("", text) + str(out_tree))),
            ("what the function closes over", constants),
        ),
        labels,
        out_tree,
        tuple((tuple(o.shape), np.dtype(o.dtype)) for o in outputs),
        constant_bytes,
    )


def _trace_again(rewritten: Function, shapes: Sequence[Any], where: str) -> Any:
    try:
        return jax.make_jaxpr(rewritten)(*shapes)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None


def _check(traced: Any, out: Any, ranges: Ranges, where: str) -> None:
    """Refuse results and arrays closed over that the device cannot hold.

    Single numbers are not looked at: JAX's own functions are full of ``-inf`` and of the largest
    float, where any very large number does.
    """
    for path, result in jax.tree_util.tree_flatten_with_path(out)[0]:
        try:
            check_result(result)
        except UsageError as error:
            raise UsageError(f"{where}: the result{jax.tree_util.keystr(path)} {error}") from None
    for constant in _constants(traced):
        array = _plain(constant)
        if not array.ndim or array.dtype.name not in DATA_TYPES:
            continue
        try:
            ranges.check(array, wrap_ok=True)
        except UsageError as error:
            raise UsageError(f"{where}: an array that it closes over {error}") from None


def flatten(
    function: Function, count: int, fixed: tuple[tuple[int, Any], ...], tree: Any
) -> Function:
    """``function`` as one of arrays alone."""

    def flat(*leaves: Any) -> Any:
        traced, named = jax.tree_util.tree_unflatten(tree, leaves)
        given, rest = dict(fixed), iter(traced)
        arguments = [given[place] if place in given else next(rest) for place in range(count)]
        return function(*arguments, **named)

    flat.__name__ = name_of(function)
    return flat


def name_of(function: Function) -> str:
    """What to call a function in calls and errors."""
    return str(getattr(function, "__name__", type(function).__name__))


def _lower(flat: Function, shapes: list[Any], secret: Sequence[bool]) -> bytes:
    with _jax_put_back(), _spu_keeps_nothing():
        executable, _ = frontend.compile(
            frontend.Kind.JAX,
            flat,
            shapes,
            {},
            [f"i{number}" for number in range(len(shapes))],
            [
                libspu.Visibility.VIS_SECRET if is_secret else libspu.Visibility.VIS_PUBLIC
                for is_secret in secret
            ],
            lambda outputs: [f"o{number}" for number in range(len(outputs))],
        )
    code: bytes = executable.code
    return code


@contextlib.contextmanager
def _jax_put_back() -> Iterator[None]:
    """SPU's frontend changes functions of JAX while it compiles, and where that raises it leaves
    them so: the program's own sorting of floats would then be wrong."""
    from jax._src.lax import lax

    names = [name for patch in frontend.lax_patches.values() for name in patch.possible_names]
    before = {name: getattr(lax, name) for name in names if hasattr(lax, name)}
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(lax, name, value)


@contextlib.contextmanager
def _spu_keeps_nothing() -> Iterator[None]:
    """SPU keeps the last 128 codes with their sources, whatever they take; we keep them here."""
    try:
        yield
    finally:
        api._spu_compilation.cache.clear()


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _digest_of_constants(traced: Any) -> tuple[bytes, int]:
    """Digest and bytes of the arrays in what was traced, also of those of functions within.

    An inner ``jax.jit`` has constants of its own, which its caller's do not show.
    """
    digest, total = hashlib.sha256(), 0
    for constant in _constants(traced):
        array = _plain(constant)
        digest.update(f"{getattr(constant, 'dtype', None)} {array.dtype} {array.shape};".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
        total += array.nbytes
    return digest.digest(), total


def _plain(constant: Any) -> np.ndarray[Any, Any]:
    """As numpy; typed PRNG keys, which numpy has no type for, as the numbers in them."""
    if is_prng_key(constant):
        constant = jax.random.key_data(constant)
    return np.asarray(constant)


def _constants(found: Any) -> Iterator[Any]:
    match found:
        case jax.extend.core.ClosedJaxpr():
            yield from found.consts
            yield from _constants(found.jaxpr)
        case jax.extend.core.Jaxpr():
            for equation in found.eqns:
                for value in equation.invars:
                    if isinstance(value, jax.extend.core.Literal) and np.ndim(value.val):
                        yield value.val
                for value in equation.params.values():
                    yield from _constants(value)
        case list() | tuple():
            for value in found:
                yield from _constants(value)
        case dict():
            for value in found.values():
                yield from _constants(value)
        case np.ndarray() | jax.Array():
            yield found

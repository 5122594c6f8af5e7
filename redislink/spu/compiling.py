"""Traces and compiles functions of JAX arrays for SPU, and caches the results.

Rules:
- Every party traces and compiles, even if it has no use for the code. So an error comes at all
  parties, in the same call, before anything is sent.
- The traced function with all its constants must be equal everywhere; the parts of its digest say
  what differs.
- The cache is bounded by bytes: a loop that closes over new weights makes a function each time.
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
from redislink.spu.missing import check_no_nan
from redislink.spu.ranges import Ranges
from redislink.spu.rewriting import rewrite

Function = Callable[..., Any]
_Kept = TypeVar("_Kept")

_MOST_KEPT: Final = 256
_MOST_BYTES: Final = 128 << 20
"""Limit of what one cache keeps: codes, and the constants of their functions."""
_NO_BRANCH: Final = (
    "The function asks for a value, such as in an if, while the parties have only shares: choose "
    "with jnp.where(condition, one, other), or reveal it before the call"
)
_LACKS: Final = re.compile(r"MLIR translation rule for primitive '(\w+)'")
_ADDRESS: Final = re.compile(r" at 0x[0-9a-fA-F]+")


class Kept(Generic[_Kept]):
    """A cache of the newest values, up to a number and a sum of bytes; never without the last."""

    def __init__(self) -> None:
        """Empty."""
        self._entries: OrderedDict[Hashable, tuple[_Kept, int]] = OrderedDict()
        self.total_bytes = 0

    def get(self, key: Hashable) -> _Kept | None:
        """The value of a key, which becomes the newest; None if it is not in the cache.

        Raises:
            TypeError: ``key`` is not hashable.
        """
        entry = self._entries.get(key)
        if entry is None:
            return None
        self._entries.move_to_end(key)
        return entry[0]

    def put(self, key: Hashable, value: _Kept, size: int) -> None:
        """Keep ``value``, of ``size`` bytes, as the newest, and drop the oldest."""
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
# They share compiled code: equal traces give equal code.
_compile_lock = threading.Lock()
renew_in_child(_compile_lock)
_codes: Kept[bytes] = Kept()


@dataclass(eq=False)
class Compiled:
    """A function traced for arguments of certain shapes, and compiled for SPU by `lower`.

    Attributes:
        code: the code for SPU; empty until `lower` was called.
        parts: the parts that must be equal everywhere.
        labels: the names of its arguments, for errors.
        out_tree: the containers of the results.
        out_shapes: the shape and dtype of each result.
        constant_bytes: the size of the arrays that the function closes over.
    """

    code: bytes
    parts: tuple[Part, ...]
    labels: tuple[str, ...]
    out_tree: Any
    out_shapes: tuple[tuple[tuple[int, ...], np.dtype[Any]], ...]
    constant_bytes: int
    _lower: Callable[[], bytes] | None

    @property
    def is_traced_only(self) -> bool:
        """Whether it has not been compiled yet."""
        return self._lower is not None

    def lower(self) -> None:
        """Compile it, unless that has been done.

        Raises: as `trace_function`.
        """
        if self._lower is not None:
            self.code, self._lower = self._lower(), None

    @property
    def nbytes(self) -> int:
        """The bytes that this and its function take up."""
        return len(self.code) + self.constant_bytes


def trace_function(
    flat: Function,
    leaves: Sequence[Any],
    secret: Sequence[bool],
    labels: tuple[str, ...],
    ranges: Ranges,
    where: str,
) -> Compiled:
    """Trace a function, so that it can be compared and compiled.

    Args:
        flat: a function of arrays only, made by `flatten`.
        leaves: its arguments, or objects with their shapes and dtypes.
        secret: for each argument, whether it is secret-shared; otherwise it is public.
        labels: for each argument, its name in errors.
        ranges: what the device can hold.
        where: the party and the call, for errors.

    Raises:
        UsageError: SPU's compiler refuses the function, or it returns or closes over something that
            the device cannot hold.
        Exception: whatever JAX raises, with ``where`` in a note.
    """
    shapes = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]
    # Without this, JAX would cut 64-bit values to 32 bits.
    wide = any(leaf.dtype.itemsize == 8 for leaf in leaves) or jax.config.jax_enable_x64
    with _compiling(where, wide=wide):
        traced, out = jax.make_jaxpr(flat, return_shape=True)(*shapes)
        outputs, out_tree = jax.tree_util.tree_flatten(out)
        try:  # before JAX's own functions are taken apart
            check_no_nan(traced)
        except UsageError as error:
            raise UsageError(f"{where}: {error}") from None
        rewritten = rewrite(traced, out_tree, ranges.ring_bits, ranges.fraction_bits)
        if rewritten is not None:
            rewritten.__name__ = flat.__name__
            flat, traced = rewritten, _trace_again(rewritten, shapes, where)
        _check(traced, out, ranges, where)
        text = str(traced)
        constants, constant_bytes = _digest_of_constants(traced)
    place = _digest(repr((text, constants, str(out_tree), shapes, tuple(secret), wide)))

    def lower() -> bytes:
        with _compiling(where, wide=wide):
            code = _codes.get(place)
            if code is None:
                code = _lower(flat, shapes, secret)
                _codes.put(place, code, len(code))
            return code

    return Compiled(
        b"",
        (
            ("the function", _digest(_ADDRESS.sub("", text) + str(out_tree))),
            ("what the function closes over", constants),
        ),
        labels,
        out_tree,
        tuple((tuple(o.shape), np.dtype(o.dtype)) for o in outputs),
        constant_bytes,
        lower,
    )


@contextlib.contextmanager
def _compiling(where: str, *, wide: bool) -> Iterator[None]:
    """Alone with the compilers of JAX and SPU, whose errors say where."""
    with _compile_lock, jax.enable_x64(wide):
        try:
            yield
        except Exception as error:
            lacks = _LACKS.search(str(error)) if isinstance(error, NotImplementedError) else None
            if lacks is not None:
                raise UsageError(
                    f"{where}: SPU has no operation {lacks[1]!r}: write it with other operations "
                    "(for a regression line, means of products), or compute that part in the clear"
                ) from None
            if isinstance(error, RuntimeError) and "spu::compiler" in str(error):
                raise UsageError(
                    f"{where}: SPU cannot compile it; its compiler names on stderr the operation "
                    "that it lacks: use other operations there, or compute that part in the clear"
                ) from error
            if isinstance(error, jax.errors.ConcretizationTypeError):
                error.add_note(_NO_BRANCH)
            error.add_note(where)
            raise


def _trace_again(rewritten: Function, shapes: Sequence[Any], where: str) -> Any:
    try:
        return jax.make_jaxpr(rewritten)(*shapes)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None


def _check(traced: Any, out: Any, ranges: Ranges, where: str) -> None:
    """Refuse results and closed-over arrays that the device cannot hold.

    Single numbers are not checked: JAX's own functions often use ``-inf`` and the largest float
    where any very large number would do.
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
    """``function`` as a function of arrays only."""

    def flat(*leaves: Any) -> Any:
        traced, named = jax.tree_util.tree_unflatten(tree, leaves)
        given, rest = dict(fixed), iter(traced)
        arguments = [given[place] if place in given else next(rest) for place in range(count)]
        return function(*arguments, **named)

    flat.__name__ = name_of(function)
    return flat


def name_of(function: Function) -> str:
    """The name of a function in calls and errors."""
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
    """Restore JAX: SPU's frontend patches JAX while it compiles, and leaves the patches if that
    raises; the program's own sorting of floats would then be wrong."""
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
    """Empty SPU's cache, which keeps 128 codes of any size; we have our own."""
    try:
        yield
    finally:
        api._spu_compilation.cache.clear()


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _digest_of_constants(traced: Any) -> tuple[bytes, int]:
    """The digest and total size of the arrays in a traced function and its inner functions.

    An inner ``jax.jit`` has constants of its own, which are not among those of its caller.
    """
    digest, total = hashlib.sha256(), 0
    for constant in _constants(traced):
        array = _plain(constant)
        digest.update(f"{getattr(constant, 'dtype', None)} {array.dtype} {array.shape};".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
        total += array.nbytes
    return digest.digest(), total


def _plain(constant: Any) -> np.ndarray[Any, Any]:
    """A constant as a NumPy array; a typed PRNG key as the numbers in it."""
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

"""See `_native.c`, and `native`, which alone imports this."""

from collections.abc import Callable
from typing import Any, Final, TypeVar

_FunctionT = TypeVar("_FunctionT", bound=Callable[..., Any])

OPENSSL: Final[str]

class Cipher:
    def __init__(self, key: bytes, header: bytes, encodings: tuple[object, ...], /) -> None: ...

def leaf(definition: _FunctionT, /) -> _FunctionT: ...
def use(on: bool, /) -> None: ...

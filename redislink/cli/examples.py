"""Where the examples are that the demos run."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import redislink
from redislink.errors import ConfigError

PROGRAM: Final = "logistic_regression.py"


def find_examples() -> Path:
    """The directory of the examples: in the installed package, or else in the checkout.

    Raises:
        ConfigError: there are no examples.
    """
    package = Path(redislink.__file__).parent
    for directory in (package / "_examples", package.parent / "examples"):
        if (directory / PROGRAM).is_file():
            return directory
    raise ConfigError(
        f"{PROGRAM} is neither in {package / '_examples'} nor in {package.parent / 'examples'}: "
        "install redislink again"
    )

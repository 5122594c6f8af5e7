"""Steps of a release: ``python .ci/release STEP``. The Makefile has a target for each."""

from __future__ import annotations

import importlib
import sys

from common import ReleaseError

STEPS = {
    "lock": "lock:write",
    "check": "check:check",
    "bundle": "bundle:make",
    "bundle-check": "bundle:try_out",
    "helm": "helm:check",
}


def main() -> None:
    """Run the step."""
    if sys.argv[1:2] == [] or sys.argv[1] not in STEPS:
        raise SystemExit(f"Usage: python .ci/release {'|'.join(STEPS)}")
    module, _, function = STEPS[sys.argv[1]].partition(":")
    try:
        getattr(importlib.import_module(module), function)(*sys.argv[2:])
    except ReleaseError as error:
        raise SystemExit(f"FAILED: {error}") from None


if __name__ == "__main__":
    main()

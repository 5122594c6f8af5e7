"""The container images that deploy/ names: each by its digest, or listed in deploy/images.txt.

A tag can be moved to another image; a digest cannot. Nobody invents a digest: whoever can reach the
registry looks it up there (``docker buildx imagetools inspect IMAGE``).
"""

from __future__ import annotations

import re
from pathlib import Path

from common import ROOT, ReleaseError

DEPLOY = ROOT / "deploy"
LIST = DEPLOY / "images.txt"
_NAMED = re.compile(
    r"^\s*(?:-\s+)?(?:image:\s+(?:&\w+\s+)?|FROM\s+)([\w.-]+/[\w./-]+(?::[\w.-]+)?(?:@sha256:\w+)?)",
    re.MULTILINE,
)
_BY_DIGEST = re.compile(r"@sha256:[0-9a-f]{64}$")


def named() -> dict[str, list[str]]:
    """The images, and the files that name each."""
    found: dict[str, list[str]] = {}
    for path in sorted(DEPLOY.rglob("*")):
        if path.suffix in (".yaml", ".yml", ".Dockerfile") and "templates" not in path.parts:
            for image in _NAMED.findall(path.read_text()):
                found.setdefault(image, []).append(path.relative_to(DEPLOY).as_posix())
    return found


def listed(path: Path = LIST) -> dict[str, str]:
    """The images of the list: why each has no digest."""
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    return {image: reason for image, _, reason in (line.partition("  ") for line in lines)}


def problems(images: dict[str, list[str]], exceptions: dict[str, str]) -> list[str]:
    """What is wrong, one line each."""
    wrong = [
        f"{image} ({', '.join(files)}): name it by its digest (@sha256:…), or say in "
        "deploy/images.txt why not"
        for image, files in images.items()
        if not _BY_DIGEST.search(image) and not exceptions.get(image, "").strip()
    ]
    wrong += [
        f"deploy/images.txt: {image} is named nowhere, or has a digest: remove the line"
        for image in exceptions
        if image not in images or _BY_DIGEST.search(image)
    ]
    return wrong


def check() -> list[str]:
    """The exceptions, one line each.

    Raises:
        ReleaseError: an image has neither digest nor exception.
    """
    exceptions = listed()
    if wrong := problems(named(), exceptions):
        raise ReleaseError("\n".join(wrong))
    return [f"{image}: {reason}" for image, reason in exceptions.items()]

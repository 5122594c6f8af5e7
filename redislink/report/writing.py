"""Writes the page of a run."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from redislink.errors import ConfigError
from redislink.files import replacing
from redislink.report.gather import Gathered, gather

if TYPE_CHECKING:
    import jinja2

_TEMPLATES: Final = Path(__file__).parent


def write_report(
    files: Iterable[str | Path],
    out: str | Path,
    *,
    session: str | None = None,
    keys: Mapping[str, str | None] | None = None,
    since: float = 0.0,
) -> Gathered:
    """Make the page of a run.

    Args:
        files, session, keys, since: as for `gather`.
        out: the page to write; an existing file is replaced. Only its owner can read it.

    Returns:
        What it was made from.

    Raises:
        ConfigError: ``redislink[report]`` is not installed; the page cannot be written; or as
            `gather`.
        AuditError: an audit record cannot be read.
    """
    check_installed()
    found = gather(files, session=session, keys=keys, since=since)
    if any(path.resolve() == Path(out).resolve() for path, _ in found.files):
        raise ConfigError(f"{out} is one of the files to report about: name another with --out")
    text = render(found)
    try:
        with replacing(out) as file:
            file.write(text)
    except OSError as error:
        raise ConfigError(f"cannot write {out} ({error.strerror}): name another file") from None
    return found


def can_report() -> bool:
    """Whether ``redislink[report]`` is installed; nothing of it is loaded."""
    return all(importlib.util.find_spec(name) is not None for name in ("jinja2", "pygal"))


def check_installed() -> None:
    """Raise ConfigError if ``redislink[report]`` is not installed."""
    from redislink.report import charts  # noqa: F401 - it raises

    _template_engine()


def render(found: Gathered) -> str:
    """The page of a run, as HTML.

    Raises:
        ConfigError: ``redislink[report]`` is not installed.
    """
    from redislink.report.page import make_page

    page = make_page(found)
    return _template_engine().get_template("page.html.jinja").render(page=page)


def _template_engine() -> jinja2.Environment:
    try:
        import jinja2
    except ImportError:
        raise ConfigError(
            "a report needs the packages Jinja2 and pygal: pip install 'redislink[report]'"
        ) from None
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )

"""The Python reference, as HTML, from the docstrings of the public names.

The site shows it (``docs/site_hooks.py``). ``python docs/make_reference.py DIRECTORY`` writes what
stands in its pages, without the frame.
"""

from __future__ import annotations

import functools
import importlib
import sys
import textwrap
import warnings
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

MODULES: Final = (
    "redislink",
    "redislink.cluster.runtime",
    "redislink.spu",
    "redislink.broker",
    "redislink.audit",
    "redislink.interop.brpc",
    "redislink.interop.fed",
    "redislink.interop.rayfed",
    "redislink.jobs",
    "redislink.logs",
    "redislink.testing",
    "redislink.testing.fixtures",
)
INTERNAL: Final = MappingProxyType(
    {
        "Broker": {
            "address",
            "addresses",
            "at",
            "blpop_slice",
            "dial",
            "in_process",
            "is_cluster",
            "labels",
            "may_be_quiet",
            "masters",
            "on",
            "open",
            "open_answering",
            "proxy_to",
            "tls_files",
            "why_none",
        },
        "EgressProxy": {"address", "dial", "from_settings", "reach", "remedy", "serves"},
        "Endpoint": {"epochs"},
        "EndpointStats": {"of"},
        "FaultyBroker": {"decide", "flush_session", "hold", "open", "take_overtaken"},
        "PeerStats": {"of"},
        "RedisLinkSettings": {"model_post_init", "proxy_choice"},
        "SeveralBrokers": {
            "addresses",
            "at",
            "blpop_slice",
            "in_process",
            "is_cluster",
            "may_be_quiet",
            "move",
            "note",
            "open",
            "proxy_to",
            "why_away",
            "why_none",
        },
        "SpuConfig": {"spu_protocol"},
        "redislink.audit": {"AuditLog"},
        "redislink.broker": {"AnyOutbox", "Inbox", "Outbox", "make_broker", "make_outbox"},
        "redislink.cluster.runtime": {"REFUSED"},
    }
)
"""Names that only redislink itself uses, by their class or module. `IN_EVERY_CLASS` has others."""
IN_EVERY_CLASS: Final = frozenset({"die_in_child", "model_config"})
MADE_ELSEWHERE: Final = "Not for users"
"""How the docstring of a constructor begins that users do not call."""
_BEGIN: Final = "Args:\n"


def indent_first_section(docstring: str) -> str:
    """A docstring whose first line is ``Args:``, as pdoc understands it; any other as it is.

    What follows that line stands in the margin, as Python takes the common indentation away.
    """
    if not docstring.startswith(_BEGIN):
        return docstring
    arguments, blank, rest = docstring.removeprefix(_BEGIN).partition("\n\n")
    return _BEGIN + textwrap.indent(arguments, "    ") + blank + rest


def is_shown(member: Any) -> bool:
    """Whether the reference shows a ``pdoc.doc.Doc``: users may use it."""
    if member.kind == "module":
        return True
    if member.name == "__init__":
        return not member.docstring.startswith(MADE_ELSEWHERE)
    inside_class = "." in member.qualname
    owner = member.taken_from[1].split(".")[0] if inside_class else member.modulename
    if inside_class and member.name in IN_EVERY_CLASS:
        return False
    return member.name not in INTERNAL.get(owner, ())


@functools.cache
def render() -> dict[str, str]:
    """The content of each module's page, as HTML, by the module's name."""
    import pdoc  # `MODULES` is of use without it
    from pdoc import docstrings

    convert = docstrings.google
    docstrings.google = lambda docstring: convert(indent_first_section(docstring))
    pdoc.render.env.filters["is_shown"] = is_shown
    template = Path(__file__).parent / "reference_template"
    pdoc.render.configure(docformat="google", show_source=False, template_directory=template)
    for name in MODULES:  # pdoc sees a name that is imported when it is asked for only afterwards
        module = importlib.import_module(name)
        for public in getattr(module, "__all__", ()):
            getattr(module, public)
    modules = {name: pdoc.doc.Module(importlib.import_module(name)) for name in MODULES}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # pdoc warns of what it cannot resolve
        pages = {name: pdoc.render.html_module(each, modules) for name, each in modules.items()}
    # How reStructuredText says that code follows.
    return {name: html.replace("::</p>", ":</p>") for name, html in pages.items()}


if __name__ == "__main__":
    for name, html in render().items():
        page = Path(sys.argv[1], *name.split(".")).with_suffix(".html")
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(html, encoding="utf-8")

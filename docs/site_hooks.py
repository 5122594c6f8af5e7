"""What MkDocs needs to know of this repository; see ``mkdocs.yml``.

Rules: a page has one source, where it stands in the repository. The pages of the Python reference
are made from the docstrings (`make_reference`). What is built loads nothing from the network.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any, Final

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.toc import get_toc

HERE: Final = Path(__file__).parent
ROOT: Final = HERE.parent
sys.path.insert(0, str(HERE))

import fields  # noqa: E402
import make_reference  # noqa: E402

PAGES: Final = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (
        *ROOT.glob("*.md"), *HERE.glob("**/*.md"), *ROOT.glob("examples/**/*.md"),
        *ROOT.glob("deploy/**/*.md"),
    )
)  # fmt: skip
"""Every page of the site, by its path in the repository."""
PLACES: Final = {"docs/README.md": "index.html", "README.md": "quick-start.html"}
"""Pages that stand elsewhere on the site."""
API: Final = "api"
_LINK: Final = re.compile(r"\]\(([^)\s#]+)(?:#[^)\s]*)?\)|src=\"([^\"]+)\"")
_ITEM: Final = re.compile(r"(?:-|\d+\.) +")
_LOADED: Final = re.compile(
    r"<(?:script|img|iframe|source|link(?![^>]*rel=.canonical))\b[^>]*\b(?:src|href)=.?https?://[^>]*"
)
_LOGO: Final = re.compile(
    r'(<a href=")(\.(?:\.(?:/\.\.)*)?)(?=" title="[^"]*" class="md-[^"]*logo")'
)
_HEADING: Final = re.compile(r'<h([23]) id="([^"]*)">(.*?)<a class="headerlink"', re.DOTALL)


def github_anchor(heading: str, separator: str = "-") -> str:
    """The anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", separator)


def on_config(config: Any) -> Any:
    """Anchors as in the repository, and the nav's entries for the Python reference."""
    config.mdx_configs.setdefault("toc", {})["slugify"] = github_anchor
    config.watch += [str(ROOT / name) for name in ("README.md", "docs", "examples", "deploy")]
    for part in config.nav:
        for entry in next(iter(part.values())):
            if isinstance(entry, dict) and "Python" in entry:
                entry["Python"] = [_api_page(name) for name in make_reference.MODULES]
    return config


def on_files(files: Files, *, config: Any) -> Files:
    """Add the repository's pages, what they show, and the reference."""
    added = set[str]()
    for page in PAGES:
        file = File.generated(config, page, abs_src_path=str(ROOT / page))
        if page in PLACES:
            file.dest_uri = PLACES[page]
        files.append(file)
        added.add(page)
    for page in PAGES:
        for found in _LINK.finditer((ROOT / page).read_text(encoding="utf-8")):
            target = (ROOT / page).parent / (found[1] or found[2])
            if ":" in str(target.name) or not target.is_file():
                continue
            shown = target.resolve().relative_to(ROOT).as_posix()
            if shown not in added:
                files.append(
                    File.generated(
                        config, shown, abs_src_path=str(ROOT / shown),
                        inclusion=InclusionLevel.INCLUDED,
                    )
                )  # fmt: skip
                added.add(shown)
    for name in make_reference.MODULES:
        files.append(File.generated(config, _api_page(name), content=f"# `{name}`\n"))
    return files


def indent_lists(text: str) -> str:
    """Indent what belongs to an item of a list by four, as MkDocs needs it.

    The pages indent by the width of the bullet or number, as everybody else reads it.
    """
    lines: list[str] = []
    shift, fenced, blank, after = 0, False, True, False
    for line in text.splitlines():
        item = _ITEM.match(line)
        inside = line.startswith("  ")
        if not fenced:
            if item:
                if after:  # else it would be part of that paragraph
                    lines.append("")
                shift, after = max(0, 4 - len(item[0])), False
            elif line and not inside and (blank or line.startswith(("#", "```", "|", "<"))):
                shift, after = 0, False
            if blank and inside and shift:
                after = True  # in a further paragraph of an item
        if line.lstrip().startswith("```"):
            fenced = not fenced
        lines.append(" " * shift + line if shift and inside else line)
        blank = not line
    return "\n".join(lines) + "\n"


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Lists as MkDocs reads them; and a heading of its own for the page that is not the first."""
    if page.file.src_uri == "README.md":
        markdown = markdown.replace("# redislink\n", "# Quick start\n", 1)
    return indent_lists(markdown)


def on_page_content(content: str, *, page: Any, config: Any, files: Files) -> str:
    """Put a module's reference into its page."""
    name = page.file.src_uri.removeprefix(f"{API}/").removesuffix(".md").replace("/", ".")
    if not page.file.src_uri.startswith(f"{API}/"):
        return content
    html = _link_pages(make_reference.render()[name], page.url.count("/"))
    page.toc = get_toc(_contents(html))
    return html


def on_post_page(output: str, **_: Any) -> str:
    """The logo leads to the start page also from disk, where a directory has no such page."""
    return _LOGO.sub(r"\1\2/index.html", output)


def on_post_build(*, config: Any) -> None:
    """Refuse a site that would load anything from the network.

    MkDocs' page for errors names what it loads from the server's root, which neither a disk nor a
    server of several sites has, so there is none.
    """
    (Path(config.site_dir) / "404.html").unlink(missing_ok=True)
    for path in Path(config.site_dir).rglob("*.html"):
        if found := _LOADED.search(path.read_text(encoding="utf-8")):
            raise PluginError(f"{path}: would load {found[0]} from the network")


def _link_pages(html: str, depth: int) -> str:
    """Make links of the pages that docstrings name, on a page so many directories down."""

    def link(found: re.Match[str]) -> str:
        target = found[1].removesuffix(".md") + ".html"
        return f'<a href="{"../" * depth}docs/{target}">{fields.title(found[1])}</a>'

    return fields.PAGE.sub(link, html)


def _api_page(module: str) -> str:
    return f"{API}/{module.replace('.', '/')}.md"


def _contents(html: str) -> list[dict[str, Any]]:
    """The table of contents of a module's page: its names, and in them those of their members."""
    found: list[dict[str, Any]] = []
    for level, anchor, text in _HEADING.findall(html):
        entry = {
            "level": int(level), "id": anchor, "name": text.strip(), "html": text.strip(),
            "children": [], "data-toc-label": "",
        }  # fmt: skip
        into = found[-1]["children"] if level == "3" and found else found
        into.append(entry)
    return found

"""What MkDocs does here beyond mkdocs.yml: one set of pages reads well on GitHub and in the site.

- Pages are GitHub's Markdown, see commonmark.py; anchors are GitHub's too.
- A link that leaves docs/ (``../configs/quickstart.yaml``) leads to a copy of that file in the
  site, so nothing points at a server and every link is checked when the site is built.
- The reference is made on the spot, see reference.py and commands.py.
"""

from __future__ import annotations

import posixpath
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from commonmark import for_python_markdown
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from reference import FOLDER, PACKAGES, ROOT, configs_page, rooms, rooms_nav

_LINK = re.compile(r"(?<=\]\()([^)\s]+)(?=[)\s])")
_FENCE = re.compile(r"^( *)(`{3,}|~{3,}).*?^\1\2`*[ ]*$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"(`+)[^`].*?\1", re.DOTALL)
_INLINE = re.compile(r"(?<!<pre>)(?<!<span></span>)<code>([^<]*)</code>")
_HYPHENED = re.compile(r"(?<![^\s])[^\s<>]*-[^\s<>]*")
_LONGEST = 34
"""Letters of code that fit a phone's line; a longer word may break."""
_LANGUAGES = {".py": "python", ".yaml": "yaml", ".toml": "toml", ".cfg": "ini", ".yml": "yaml"}
PROJECT, SOURCE = "project", "source"
"""Folders of the site: pages of the repository's root, and copies of its files."""


def on_startup(**_: Any) -> None:
    """Lay the packages where mkdocs.yml has mkdocstrings look for them, as they are installed."""
    folder = ROOT / "build" / "docs"
    shutil.rmtree(folder, ignore_errors=True)  # a copy: what reads it follows no links
    for name in PACKAGES:
        for file in (ROOT / name).rglob("*.py"):
            place = folder / "research_rl" / file.relative_to(ROOT)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Set GitHub's anchors, and add the rooms to the navigation."""
    config.mdx_configs.setdefault("toc", {})["slugify"] = github_slug
    for section in config.nav or []:
        if "Reference" in section:
            section["Reference"] += [{"Python": rooms_nav()}]
    return config


def github_slug(title: str, separator: str) -> str:
    """Return the anchor that GitHub gives to a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", separator)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the reference, and what pages link to outside of docs/."""
    made = {f"{FOLDER}/configs.md": configs_page(), f"{FOLDER}/commands.md": _commands(), **rooms()}
    waiting = [(f"docs/{f.src_uri}", f.content_string) for f in files.documentation_pages()]
    waiting += [(f"docs/{name}", text) for name, text in made.items()]
    for name in _named(config.nav):
        if name.startswith(f"{PROJECT}/"):
            made[name] = _copy(name.removeprefix(f"{PROJECT}/"))
            waiting.append((name.removeprefix(f"{PROJECT}/"), made[name]))
    while waiting:
        home, text = waiting.pop()
        for link in links(text):
            target = _target(home, link.partition("#")[0])
            name = target and _in_site(target)
            if target and name and name not in made and not target.startswith("docs/"):
                made[name] = _copy(target)
                waiting.append((target, made[name] if name.startswith(PROJECT) else ""))
    for name, text in made.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Write the page for Python-Markdown, its links as they are in the site."""
    here = page.file.src_uri
    home = here.removeprefix(f"{PROJECT}/") if here.startswith(f"{PROJECT}/") else f"docs/{here}"

    def moved(found: re.Match[str]) -> str:
        path, mark, anchor = found[0].partition("#")
        target = _target(home, path)
        if target is None:
            return found[0]
        name = _in_site(target)
        return posixpath.relpath(name, posixpath.dirname(here) or ".") + mark + anchor

    return for_python_markdown(outside_code(markdown, lambda text: _LINK.sub(moved, text)))


def on_page_content(html: str, **_: Any) -> str:
    """Keep the names of options in one piece, see ``whole_words``."""
    return whole_words(html)


def whole_words(html: str) -> str:
    """Return the page with hyphened words of inline code marked, which site.css does not break."""

    def marked(word: re.Match[str]) -> str:
        return word[0] if len(word[0]) > _LONGEST else f'<span class="word">{word[0]}</span>'

    return _INLINE.sub(lambda code: f"<code>{_HYPHENED.sub(marked, code[1])}</code>", html)


@event_priority(-100)  # behind the plugin that writes the index
def on_post_build(config: MkDocsConfig) -> None:
    """Write the index of the search as a script too: pages opened from disk can load no JSON."""
    folder = Path(config.site_dir) / "search"
    index = (folder / "search_index.json").read_text(encoding="utf-8")
    (folder / "search_index.js").write_text(f"var __index = {index}", encoding="utf-8")


def _commands() -> str:
    """The page that docs/commands.py prints, in a process of its own: it imports everything."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "commands.py")], capture_output=True, text=True
    )
    if done.returncode != 0:
        last = done.stderr.strip().rpartition("\n")[2]
        raise PluginError(
            f"the commands must be importable to print their help, got {last!r}; "
            "install the package beside MkDocs: pip install -c constraints.txt -e '.[cpu,docs]'"
        )
    return done.stdout


def links(text: str) -> Iterator[str]:
    """The targets of a page's links, code left out."""
    found: list[str] = []
    outside_code(text, lambda part: found.extend(_LINK.findall(part)) or part)  # type: ignore[func-returns-value]
    yield from found


def outside_code(text: str, change: Any) -> str:
    """Return the text with what stands outside of fences and code spans changed."""
    return _outside(_FENCE, text, lambda part: _outside(_CODE, part, change))


def _outside(code: re.Pattern[str], text: str, change: Any) -> str:
    made, place = [], 0
    for found in code.finditer(text):
        made += [change(text[place : found.start()]), found[0]]
        place = found.end()
    return "".join([*made, change(text[place:])])


def _target(home: str, link: str) -> str | None:
    """The file of the repository that a link from ``home`` leads to; None for all other links."""
    if not link or "://" in link or link.startswith("mailto:"):
        return None
    path = posixpath.normpath(posixpath.join(posixpath.dirname(home), link))
    return path if (ROOT / path).exists() or path.startswith(f"docs/{FOLDER}/") else None


def _in_site(target: str) -> str:
    """Where a file of the repository lies in the site."""
    if target in ("README.md", "configs"):
        return {"README.md": "index.md", "configs": f"{FOLDER}/configs.md"}[target]
    if target.startswith("docs/") and not target.endswith(".py"):
        return target.removeprefix("docs/")
    if target.endswith(".md"):
        return f"{PROJECT}/{target}"
    return f"{SOURCE}/{target}" + ("/index.md" if (ROOT / target).is_dir() else ".md")


def _copy(target: str) -> str:
    """The page of a file or folder of the repository."""
    place = ROOT / target
    if target.endswith(".md"):
        return place.read_text(encoding="utf-8")
    head = f"---\nsearch:\n  exclude: true\n---\n\n# `{target}`\n\n"
    if place.is_dir():
        names = sorted(p.name for p in place.iterdir() if not p.name.startswith((".", "__")))
        return head + "".join(f"- `{name}`\n" for name in names)
    text = place.read_text(encoding="utf-8").rstrip()
    return f"{head}``````{_LANGUAGES.get(place.suffix, 'text')}\n{text}\n``````\n"


def _named(nav: Any) -> Iterator[str]:
    """The pages that a navigation names."""
    if isinstance(nav, str):
        yield nav
    elif isinstance(nav, dict):
        yield from (name for value in nav.values() for name in _named(value))
    else:
        yield from (name for value in nav or [] for name in _named(value))

"""A hook of MkDocs: links that leave docs/, which are right on GitHub, are made right for the site.

Pictures and rows go into the site. Other files are no part of it, so their link becomes their path. What is not there
is warned of, which fails a strict build.
"""

import logging
import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"\[(?P<text>[^\]]*)\]\((?P<target>\.\./[^)\s]+)\)")
DEFINITION = re.compile(r"(?m)^\[(?P<name>[^\]]+)\]: (?P<target>\.\./\S+)\n?")
IN_THE_SITE = ".png", ".svg", ".csv"
log = logging.getLogger("mkdocs.site_links")


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The text of a page with links out of docs/ replaced."""
    folder = Path(config.docs_dir, page.file.src_uri).parent

    def replaced(link: re.Match[str]) -> str:
        path = Path(os.path.normpath(folder / link["target"].partition("#")[0]))
        if path.is_relative_to(config.docs_dir):
            return link[0]
        name = path.relative_to(ROOT).as_posix()
        if not path.exists():
            log.warning(f"{page.file.src_uri} links to {name}, which is not there")
            return link[0]
        if path.suffix not in IN_THE_SITE:
            return link["text"] if path.name in link["text"] else f"{link['text']} (`{name}`)"
        if files.get_file_from_path(name) is None:
            files.append(File.generated(config, name, abs_src_path=str(path)))
        return f"[{link['text']}]({os.path.relpath(name, Path(page.file.src_uri).parent)})"

    return LINK.sub(replaced, _inline(markdown))


def _inline(markdown: str) -> str:
    """The text with links by name, to what is defined at its end, written as those that name their target."""
    for name, target in DEFINITION.findall(markdown):
        markdown = markdown.replace(f"][{name}]", f"]({target})")
    return DEFINITION.sub("", markdown)

"""The documentation: its links, what is generated from the code, and the site that is built from both."""

import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

import keswick.client

ROOT = Path(__file__).parents[2]
PAGES = [path.relative_to(ROOT) for path in (*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md")))]
ELSEWHERE = re.compile(r"[a-z]+:", re.ASCII)


def links(page: Path) -> list[str]:
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse((ROOT / page).read_text())
    children = [child for token in tokens for child in token.children or () if child.type in ("link_open", "image")]
    return [str(child.attrGet("href") or child.attrGet("src")) for child in children]


def anchors(page: Path) -> set[str]:
    """Those of the headings, as code hosts and the site make them."""
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse((ROOT / page).read_text())
    texts = [
        "".join(child.content for child in inline.children or ())
        for heading, inline in pairwise(tokens)
        if heading.type == "heading_open"
    ]
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in texts}


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_what_a_page_links_to_exists(page: Path) -> None:
    for link in links(page):
        if ELSEWHERE.match(link):
            continue
        name, _, anchor = link.partition("#")
        target = (ROOT / page.parent / name).resolve().relative_to(ROOT) if name else page
        assert (ROOT / target).is_file(), link
        assert not anchor or anchor in anchors(target), link


def test_the_pages_are_as_the_code_says() -> None:
    done = subprocess.run([sys.executable, "docs/generate.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_site_is_built_without_a_warning_is_complete_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    site = tmp_path / "html"
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", "docs", "-d", str(tmp_path), ".", str(site)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    built = [page for page in site.rglob("*.html") if page != site / "index.html"]
    assert {page.relative_to(site) for page in built} >= {page.with_suffix(".html") for page in PAGES}
    reference = (site / "docs" / "api.html").read_text()
    for name in set(keswick.client.__all__) - {"DEFAULT_ENDPOINT"}:
        assert re.search(rf'id="keswick\.client\.(\w+\.)?{name}"', reference), name
    for page in built:
        assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(?:https?:)?//[^>]+>', page.read_text()), page

"""The site: every page of the project as it stands, read from the root so that its links mean what they say there."""

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "src"))

import keswick  # noqa: E402 - only the line above makes it known

CONTENTS = {
    "Begin": ("docs/concepts", "docs/coming-from-kes"),
    "Use": ("docs/cli", "docs/commands", "docs/client", "docs/api"),
    "Run a server": (
        "docs/configuration",
        "docs/configuration-old",
        "docs/dialects",
        "docs/deployment",
        "docs/behind-a-proxy",
        "docs/side-by-side",
        "docs/operations",
        "docs/management-server",
        "docs/migration",
        "docs/compatibility",
        "SECURITY",
    ),
    "Key stores": (
        "docs/key-stores",
        "docs/keystore-folder",
        "docs/keystore-encrypted-folder",
        "docs/keystore-postgresql",
        "docs/keystore-vault",
        "docs/keystore-aws",
        "docs/keystore-gcp",
        "docs/keystore-azure",
        "docs/keystore-keysecure",
        "docs/keystore-fortanix",
        "docs/keystore-entrust",
        "docs/keystore-plugin",
        "docs/adding-a-key-store",
    ),
    "Look inside": ("docs/architecture", "docs/formats", "CONTRIBUTING", "CHANGELOG"),
}
"""The pages below the first one, README, in the order of the navigation. A page that is missing here is an error."""

project = "Keswick"
author = "the authors of Keswick"
project_copyright = ""
version = release = keswick.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
root_doc = "README"
include_patterns = ["*.md", "docs/*.md"]
exclude_patterns = [entry.name for entry in ROOT.iterdir() if entry.is_dir() and entry.name != "docs"]  # never walked
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(asyncio|collections|contextlib|datetime|os|pathlib|ssl|typing)\..*")]

myst_heading_anchors = 4
smartquotes = False
default_role = "literal"  # in docstrings `x` is code
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True  # `os.environ`, not what is in it
autodoc_typehints_format = "short"
add_module_names = False
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = "Keswick"
html_extra_path = ["_extra"]
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_copyright = False
html_show_sphinx = False
html_use_index = False
html_domain_indices = False


def setup(app: Any) -> None:
    app.connect("source-read", _add_contents)
    app.connect("autodoc-process-docstring", _read_as_plain_text)


def _add_contents(app: Any, page: str, source: list[str]) -> None:
    """The navigation follows the first page, where a code host would show it as the code that it is."""
    if page == root_doc:
        for caption, pages in CONTENTS.items():
            source[0] += "\n".join(("", "```{toctree}", ":hidden:", f":caption: {caption}", "", *pages, "```", ""))


def _read_as_plain_text(app: Any, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """What is indented in a docstring is code. Python's own words about named tuples go, the advice of errors comes."""
    if lines and lines[0].startswith(("Alias for field number", f"{name.rpartition('.')[2]}(")):
        lines.clear()
    for index in reversed(range(1, len(lines))):
        if lines[index].startswith("    ") and not lines[index - 1] and not lines[index - 2].startswith((" ", ">>>")):
            lines[index:index] = ["::", ""]
    if what == "exception" and (advice := getattr(value, "advice", None)):
        lines += ["", f"Advice: {advice}.", ""]

"""What the page of a key store shows to be written into a configuration file."""

from pathlib import Path
from typing import Any

import yaml

from support.walker import BLOCK

DOCS = Path(__file__).parents[2] / "docs"


def shown_keystore(page: str) -> dict[str, Any]:
    """The `keystore` section that the page shows first, as `start_server` takes it."""
    shown = next(text for language, text in BLOCK.findall((DOCS / page).read_text()) if language == "yaml")
    section: dict[str, Any] = yaml.safe_load(shown)["keystore"]
    return {"fs": None, **section}

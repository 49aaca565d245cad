"""Pages that explain: what they show to be typed is typed, and what they show of a file is served."""

from pathlib import Path

import yaml

from keswick.identity import APIKey
from support.forms import write_form
from support.server import start_server
from support.walker import BLOCK, Walker, shell_blocks

DOCS = Path(__file__).parents[2] / "docs"


def test_coming_from_kes(tmp_path: Path) -> None:
    walker = Walker(tmp_path / "walk")
    walker.type(". .venv/bin/activate")
    (block,) = shell_blocks((DOCS / "coming-from-kes.md").read_text())
    for release in ("v0.5.0", "v0.13.4", "v0.17.6"):
        config = write_form(
            release, walker.folder, admin=APIKey.generate().identity, apps=(APIKey.generate().identity,)
        )
        config.rename(walker.folder / "server-config.yml")
        assert walker.type(block).endswith("The configuration is valid.\n")
        config.unlink()


def test_concepts(tmp_path: Path) -> None:
    """The identity of the page's own example gets the rights of the page's policy."""
    text = (DOCS / "concepts.md").read_text()
    walker = Walker(tmp_path / "walk")
    walker.type(". .venv/bin/activate")
    (block,) = shell_blocks(text)
    printed = walker.type(block).split()
    api_key, identity = next(word for word in printed if word.startswith("kes:v1:")), printed[-1]
    assert APIKey.parse(api_key).identity == identity

    (shown,) = (yaml.safe_load(block) for language, block in BLOCK.findall(text) if language == "yaml")
    shown["policy"]["my-app"]["identities"] = [identity]
    with start_server(tmp_path / "server", **shown) as server:
        with server.client() as admin:
            for name in ("my-app-1", "my-app-archive", "other"):
                admin.create_key(name)
        walker.environment |= server.environment | {"KES_API_KEY": api_key}
        assert walker.type("kes key dek my-app-1").startswith('{"plaintext":')
        for refused in ("my-app-archive", "other"):
            walker.type(f"! kes key dek {refused}")

import subprocess
import sys
from pathlib import Path

import pytest

from keswick import keystore
from keswick.config import model
from keswick.keystore import KeyStoreError


def test_the_configured_store_is_opened(tmp_path: Path) -> None:
    path = str(tmp_path / "keys")
    assert keystore.open(model.FSStore(path)).description == f"Filesystem: {path}"
    assert keystore.open(model.MemoryStore()).description == "In Memory"


def test_a_store_that_this_build_lacks_is_named_without_its_settings() -> None:
    section = model.RemoteStore("vault", {"approle.secret": "hush"})
    with pytest.raises(KeyStoreError, match="no key store of the kind 'vault'") as caught:
        keystore.open(section)
    assert "hush" not in str(caught.value)


def test_a_store_module_is_imported_only_when_it_is_used() -> None:
    script = "import sys, keswick.keystore; print([m for m in sys.modules if m.startswith('keswick.keystore.')])"
    out = subprocess.run(
        [sys.executable, "-c", script], env={"PYTHONPATH": ":".join(sys.path)}, capture_output=True, text=True
    )
    assert out.stdout.strip() == "['keswick.keystore.contract']"

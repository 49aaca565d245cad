import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from keswick import keystore
from keswick.keystore import KeyStoreError, StoreSection, table

ROOT = Path(__file__).parents[2]


def test_the_configured_store_is_opened(tmp_path: Path) -> None:
    path = str(tmp_path / "keys")
    assert keystore.open(StoreSection("fs", {"path": path})).description == f"Filesystem: {path}"
    assert keystore.open(keystore.MEMORY).description == "In Memory"


def test_a_missing_package_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = table.Kind("aws", "aws", "keswick_lacks.this")
    monkeypatch.setattr(table, "KINDS", {"aws.secretsmanager": kind})
    for ask in (keystore.check, keystore.open):
        with pytest.raises(KeyStoreError, match=r"pip install 'keswick\[aws\]'") as caught:
            ask(StoreSection("aws.secretsmanager", {"credentials.secretkey": "hush"}))
        assert "hush" not in str(caught.value)


def test_every_extra_is_one_of_the_package() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {kind.extra for kind in table.KINDS.values()} - {""} <= set(extras)


def test_a_store_module_is_imported_only_when_it_is_used() -> None:
    script = "import sys, keswick.keystore; print([m for m in sys.modules if m.startswith('keswick.keystore.')])"
    out = subprocess.run(
        [sys.executable, "-c", script], env={"PYTHONPATH": ":".join(sys.path)}, capture_output=True, text=True
    )
    assert out.stdout.strip() == "['keswick.keystore.contract', 'keswick.keystore.section', 'keswick.keystore.table']"

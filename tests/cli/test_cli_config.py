"""`kes config migrate`: a configuration of an older release, written in the present form."""

import stat
from pathlib import Path

import pytest

from support.cli import kes

OLD = "root: disabled\ntls: {key: k, cert: c} # the certificate\nkeys: {fs: {path: /keys}}\n"
NEW = """\
admin:
  identity: disabled
tls:
  key: k # the certificate
  cert: c
  auth: on # the default is off since October 2023
keystore:
  fs:
    path: /keys
# Policies may be written through the API.
runtime_policies: on
log:
  audit: off
"""


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "old.yaml"
    path.write_text(OLD)
    return path


def test_the_new_file_is_printed_and_what_changes_is_told_beside_it(old: Path) -> None:
    result = kes("config", "migrate", str(old))
    assert (result.code, result.stdout) == (0, NEW)
    lines = result.stderr.splitlines()
    assert lines[0] == "What changes:"
    assert "What stays, because it is written down now:" in lines
    assert all(line.startswith("  - ") for line in lines if not line.startswith("What "))
    assert "What is left to do:" not in lines


def test_what_is_left_to_do(old: Path) -> None:
    old.write_text("root: ${NOWHERE}\nkeys: {fs: {path: /keys}}\n")
    result = kes("config", "migrate", str(old), "--keep-dialect")
    assert result.code == 0
    assert "  identity: ${NOWHERE}\n" in result.stdout
    assert result.stdout.startswith(
        "# Answers in the words of v0.13, and the defaults of that time.\ncompatibility: 2021\n"
    )
    _, told = result.stderr.split("What is left to do:\n")
    unset, *flags = told.splitlines()
    assert unset.endswith("line 1: the environment variable 'NOWHERE', for 'root', is not set")
    assert [flag.split(",")[0] for flag in flags] == ["  - write 'tls.key'", "  - write 'tls.cert'"]


def test_into_a_file_that_is_as_private_as_the_old_one(old: Path, tmp_path: Path) -> None:
    old.chmod(0o640)
    result = kes("config", "migrate", str(old), "-o", str(tmp_path / "new.yaml"))
    assert (result.code, result.stdout) == (0, "")
    assert result.stderr.startswith("What changes:\n")
    assert (tmp_path / "new.yaml").read_text() == NEW
    assert stat.S_IMODE((tmp_path / "new.yaml").stat().st_mode) == 0o640


def test_nothing_is_overwritten(old: Path) -> None:
    result = kes("config", "migrate", str(old), "-o", str(old))
    assert (result.code, result.stdout) == (1, "")
    assert result.stderr == f"Error: '{old}' already exists; nothing is overwritten\n"
    assert old.read_text() == OLD


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no configuration file specified. See 'kes config migrate --help'"),
        (["{old}", "more"], "too many arguments. See 'kes config migrate --help'"),
        (["/nowhere.yaml"], "/nowhere.yaml: there is no such file"),
        (["{old}", "-o", "/nowhere/new.yaml"], "/nowhere/new.yaml: No such file or directory"),
    ],
)
def test_mistakes(old: Path, arguments: list[str], message: str) -> None:
    result = kes("config", "migrate", *(argument.format(old=old) for argument in arguments))
    assert (result.code, result.stdout, result.stderr) == (1, "", f"Error: {message}\n")


def test_a_file_that_is_in_the_present_form_already(old: Path, tmp_path: Path) -> None:
    new = tmp_path / "new.yaml"
    assert kes("config", "migrate", str(old), "-o", str(new)).code == 0
    result = kes("config", "migrate", str(new))
    assert (result.code, result.stdout) == (1, "")
    assert result.stderr == f"Error: {new}: this file is in the present form already. There is nothing to migrate, " + (
        "unless it was written for a release before October 2023: name that with '--release 2022' (v0.17.2 to v0.22) "
        "or '--release 2023'\n"
    )
    result = kes("config", "migrate", str(new), "--release", "2021")
    assert result.stderr.startswith("Error: '--release' is 2022 (v0.17.2 to v0.22) or 2023, not '2021'")

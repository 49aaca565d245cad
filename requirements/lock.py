"""Locks the dependencies that pyproject.toml names: one file of exact versions with hashes for each purpose.

Without arguments the locks are resolved anew, for every platform and every Python from the oldest supported one on.
With --check they are only compared with pyproject.toml, without a network: each lock pins what pyproject.toml asks
for, in a version that it allows, and nothing that it no longer asks for.
"""

import re
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
OLDEST_PYTHON = "3.11"

STORES = ("aws", "azure", "gcp", "pkcs11", "postgresql")
EXTRAS: dict[str, Sequence[str]] = {
    "run": (),
    "stores": STORES,
    "test": (*STORES, "test"),
    "check": (*STORES, "test", "check"),
    "bench": ("bench",),
    "docs": ("docs",),
}
"""The locks of the program's own dependencies with some extras. mypy reads the tests, hence `test` in `check`."""
BUILD = "build"
"""The lock, and the dependency group, of what builds the native part."""

PIN = re.compile(r"^(\S+?)==(\S+)((?:.*\n(?=\s))*.*)$", re.MULTILINE)
"""A package, its version, and the hashes and comments on the indented lines that follow."""


def write(name: str) -> None:
    command = [str(Path(sys.executable).parent / "uv"), "pip", "compile", "--quiet", "--upgrade"]
    command += ["--universal", "--python-version", OLDEST_PYTHON, "--generate-hashes"]
    command += ["--no-emit-index-url", "--no-emit-find-links", "--custom-compile-command", "make lock"]
    command += ["--output-file", str(lock_file(name))]
    if name == BUILD:
        command += ["--group", BUILD]
    else:
        command += ["pyproject.toml", *(f"--extra={extra}" for extra in EXTRAS[name])]
    for base in ("run", "stores"):
        if name != base and set(EXTRAS[base]) <= set(EXTRAS.get(name, ())):
            command += ["--constraints", str(lock_file(base))]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def check(name: str) -> list[str]:
    """What is wrong with a lock, one sentence each."""
    wanted = requirements(name)
    problems = []
    pinned: dict[str, list[str]] = {}
    asked_for = set()
    for package, version, annotation in PIN.findall(lock_file(name).read_text()):
        pinned.setdefault(package, []).append(version)
        if "--hash=sha256:" not in annotation:
            problems.append(f"{package} {version} has no hash")
        if "keswick (pyproject.toml" in annotation:
            asked_for.add(package)
    for requirement in wanted:
        versions = pinned.get(canonicalize_name(requirement.name), [])
        if not versions:
            problems.append(f"{requirement.name} is missing")
        problems += [
            f"{requirement.name} is pinned to {version}, and pyproject.toml asks for {requirement.specifier}"
            for version in versions
            if not requirement.specifier.contains(version)
        ]
    stale = asked_for - {canonicalize_name(requirement.name) for requirement in wanted}
    return problems + [f"{package} is no longer asked for" for package in sorted(stale)]


def requirements(name: str) -> list[Requirement]:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    if name == BUILD:
        texts = pyproject["build-system"]["requires"] + pyproject["dependency-groups"][BUILD]
    else:
        texts = list(pyproject["project"]["dependencies"])
        for extra in EXTRAS[name]:
            texts += pyproject["project"]["optional-dependencies"][extra]
    return [Requirement(text) for text in texts]


def lock_file(name: str) -> Path:
    return ROOT / "requirements" / f"{name}.lock"


def main(arguments: Sequence[str]) -> int:
    if arguments not in ([], ["--check"]):
        print(__doc__, file=sys.stderr)
        return 2
    names = [*EXTRAS, BUILD]
    if not arguments:
        for name in names:
            write(name)
    problems = [f"requirements/{name}.lock: {problem}" for name in names for problem in check(name)]
    for problem in problems:
        print(problem)
    if problems:
        print("Run `make lock`.")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

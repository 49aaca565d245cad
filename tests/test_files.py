import errno
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from keswick.files import PRIVATE, PUBLIC, NewFile, new_file, write_files
from support.server import SOURCES


@pytest.fixture(params=["without a name", "under another name", "without hard links"], autouse=True)
def file_system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every test holds on file systems that cannot do all, too."""
    if request.param != "without a name":
        monkeypatch.setattr(os, "O_TMPFILE", os.O_CREAT | os.O_DIRECTORY)  # which Linux refuses
    if request.param == "without hard links":

        def no_link(*_: object, **__: object) -> None:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))

        monkeypatch.setattr(os, "link", no_link)
    mask = os.umask(0o022)
    yield
    os.umask(mask)


def test_a_file_gets_its_name_when_it_is_whole(tmp_path: Path) -> None:
    with new_file(tmp_path / "new", mode=PUBLIC) as draft:
        draft.write(b"ab")
        assert not (tmp_path / "new").exists()
        draft.write(b"c")
    assert (tmp_path / "new").read_bytes() == b"abc"
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_a_relative_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with new_file(Path("new")) as draft:
        draft.write(b"abc")
    assert (tmp_path / "new").stat().st_mode & 0o777 == PRIVATE


def test_nothing_stays_of_a_block_that_fails(tmp_path: Path) -> None:
    def fail() -> None:
        with new_file(tmp_path / "new") as draft:
            draft.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_what_exists_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "taken"
    path.write_text("old")
    with pytest.raises(FileExistsError) as refused, new_file(path):
        pytest.fail("the block is not entered")
    assert refused.value.filename == str(path)
    assert path.read_text() == "old"


def test_a_name_that_is_taken_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "taken"

    def lose_the_race() -> None:
        with new_file(path) as draft:
            draft.write(b"new")
            path.write_text("other")

    with pytest.raises(FileExistsError) as refused:
        lose_the_race()
    assert refused.value.filename == str(path)
    assert path.read_text() == "other"
    assert list(tmp_path.iterdir()) == [path]


def test_overwriting_replaces_the_file_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "taken"
    path.write_text("old")
    with open(path) as reader:
        with new_file(path, overwrite=True) as draft:
            draft.write(b"new")
            assert path.read_text() == "old"
        assert reader.read() == "old"
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == PRIVATE
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError), new_file(tmp_path / "folder", overwrite=True):
        pytest.fail("the block is not entered")


def _without_access_time(path: Path) -> tuple[int, ...]:
    """What is there, itself and unchanged: reading a link, as a listing does, may move its access time alone."""
    found = path.lstat()
    return (found.st_ino, found.st_mode, found.st_nlink, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize("kind", ["link", "dangling link", "link to a device", "pipe"])
def test_only_a_file_is_overwritten(tmp_path: Path, kind: str, overwrite: bool) -> None:
    path, kept = tmp_path / "taken", tmp_path / "kept"
    match kind:
        case "link":
            kept.write_text("old")
            path.symlink_to(kept)
        case "dangling link":
            path.symlink_to(kept)
        case "link to a device":
            path.symlink_to(os.devnull)
        case _:
            os.mkfifo(path)
    before = _without_access_time(path)
    refusal = "only files are overwritten" if overwrite else "File exists"
    with pytest.raises(OSError, match=refusal) as refused, new_file(path, overwrite=overwrite):
        pytest.fail("the block is not entered")
    assert refused.value.filename == str(path)
    assert isinstance(refused.value, FileExistsError) is not overwrite
    with pytest.raises(OSError, match=refusal):
        write_files(NewFile(path, "new", secret=False), overwrite=overwrite)
    assert _without_access_time(path) == before
    assert {file.name for file in tmp_path.iterdir()} <= {"taken", "kept"}
    assert not kept.exists() or kept.read_text() == "old"


def test_a_folder_that_cannot_be_read_or_synced_takes_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "no folders")

    monkeypatch.setattr(os, "fsync", refuse)
    with new_file(tmp_path / "new") as draft:
        draft.write(b"new")
    assert (tmp_path / "new").read_bytes() == b"new"


def test_errors_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as failed, new_file(tmp_path / "absent" / "new"):
        pytest.fail("the block is not entered")
    assert failed.value.filename == str(tmp_path / "absent" / "new")


def test_several_files_appear_together_or_not_at_all(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    second.write_text("old")
    both = (NewFile(first, "1", secret=True), NewFile(second, "2", secret=False))
    with pytest.raises(FileExistsError):
        write_files(*both)
    assert list(tmp_path.iterdir()) == [second]
    write_files(*both, overwrite=True)
    assert (first.read_text(), second.read_text()) == ("1", "2")
    assert [path.stat().st_mode & 0o777 for path in (first, second)] == [PRIVATE, PUBLIC]


_KILLED = """
import os, signal, sys
from pathlib import Path
from keswick.files import new_file

with new_file(Path(sys.argv[1])) as draft:
    draft.write(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_process_that_is_killed_leaves_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _KILLED, str(tmp_path / "new")], env={**os.environ, "PYTHONPATH": SOURCES}, check=False
    )
    assert done.returncode == -9
    assert list(tmp_path.iterdir()) == []

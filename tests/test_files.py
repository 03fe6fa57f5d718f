"""Interrupted, full or forbidden: the old content stays, and nothing half written gets a final name."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from foretaste.errors import PlanError
from foretaste.files import (
    new_directory,
    refuse_foreign_directory,
    sha256_file,
    write_json,
    write_text,
)

ON_POSIX = pytest.mark.skipif(os.name != "posix", reason="signals, limits and users are POSIX matters")


def _python(code: str, *arguments: object, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run code in its own process, which may be killed, limited or stripped of its rights."""
    head = "import os, sys\nfrom pathlib import Path\nfrom foretaste.errors import PlanError\n"
    head += "from foretaste.files import *\n"
    command = [*prefix, sys.executable, "-c", head + textwrap.dedent(code), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_text_is_written_with_its_folders(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "text.txt"
    write_text(path, "schön\n")
    assert path.read_bytes() == "schön\n".encode()
    write_text(path, "again")
    assert path.read_text() == "again"
    assert _names(path.parent) == ["text.txt"]


@ON_POSIX
def test_others_may_read_what_was_written(tmp_path: Path) -> None:
    write_text(tmp_path / "text.txt", "x")
    with new_directory(tmp_path / "made") as folder:
        (folder / "x").write_text("x")
    assert stat.S_IMODE((tmp_path / "text.txt").stat().st_mode) == 0o644
    assert stat.S_IMODE((tmp_path / "made").stat().st_mode) == 0o755


def test_json_is_sorted_readable_and_without_nan(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    write_json(path, {"b": 1, "a": "ü"})
    assert path.read_text(encoding="utf-8") == '{\n  "a": "ü",\n  "b": 1\n}\n'
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": "ü", "b": 1}
    assert _names(tmp_path) == ["value.json"]


@ON_POSIX
def test_a_kill_between_write_and_rename_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("old")
    done = _python(
        """
        os.replace = lambda *_: os.kill(os.getpid(), 9)
        write_text(Path(sys.argv[1]), "new" * 1000)
        """,
        path,
    )
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == "old"


@ON_POSIX
def test_a_kill_before_the_end_leaves_the_old_directory(tmp_path: Path) -> None:
    path = tmp_path / "guard"
    path.mkdir()
    (path / "record.json").write_text("old")
    done = _python(
        """
        with new_directory(Path(sys.argv[1])) as folder:
            (folder / "record.json").write_text("new")
            os.kill(os.getpid(), 9)
        """,
        path,
    )
    assert done.returncode == -signal.SIGKILL
    assert (path / "record.json").read_text() == "old"


WRITE_TOO_MUCH = """
try:
    write_text(Path(sys.argv[1]), "new" * 100_000)
except PlanError as error:
    sys.exit(f"plan error: {error}")
"""


@ON_POSIX
def test_a_full_disk_leaves_the_old_file_and_no_rubbish(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("old")
    limit = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
    done = _python(limit + WRITE_TOO_MUCH, path)
    assert f"plan error: Cannot write {path}: File too large." in done.stderr
    assert path.read_text() == "old"
    assert _names(tmp_path) == ["text.txt"]


@ON_POSIX
def test_a_really_full_disk_does_the_same(tmp_path: Path) -> None:
    # its own mount namespace: whatever happens, no mount is left behind
    own = ("unshare", "--mount", "sh", "-c", f'mount -t tmpfs -o size=64k none {tmp_path} && exec "$@"', "sh")
    if shutil.which("unshare") is None or subprocess.run([*own, "true"], capture_output=True).returncode:
        pytest.skip("mounting a small disk is not permitted here")
    code = 'Path(sys.argv[1]).write_text("old")\n' + WRITE_TOO_MUCH.replace(
        "sys.exit(", "print(Path(sys.argv[1]).read_text(), os.listdir(Path(sys.argv[1]).parent)); sys.exit("
    )
    done = _python(code, tmp_path / "text.txt", prefix=own)
    assert "No space left on device." in done.stderr
    assert done.stdout == "old ['text.txt']\n"


@ON_POSIX
def test_a_full_disk_in_a_directory_keeps_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "guard"
    with new_directory(path) as folder:
        (folder / "record.json").write_text("old")
    done = _python(
        """
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try:
            with new_directory(Path(sys.argv[1])) as folder:
                (folder / "record.json").write_text("new" * 100_000)
        except PlanError as error:
            sys.exit(f"plan error: {error}")
        """,
        path,
    )
    assert f"plan error: Cannot write {path}: File too large." in done.stderr
    assert (path / "record.json").read_text() == "old"
    assert _names(tmp_path) == ["guard"]


@ON_POSIX
@pytest.mark.parametrize(
    ("mode", "action"),
    [
        (0o555, "write_text(path, 'x')"),
        (0o555, "new_directory(path).__enter__()"),
        (0o000, "write_text(path, 'x')"),
        (0o000, "new_directory(path).__enter__()"),
        (0o000, "refuse_foreign_directory(path)"),
    ],
)
def test_no_permission_is_a_plan_error(open_folder: Path, mode: int, action: str) -> None:
    locked = open_folder / "locked"
    locked.mkdir()
    locked.chmod(mode)
    done = _python(
        f"""
        if os.getuid() == 0:  # root may do everything: become somebody else
            os.setuid(65534)
        path = Path(sys.argv[1])
        try:
            {action}
        except PlanError as error:
            sys.exit(f"plan error: {{error}}")
        """,
        locked / "out",
    )
    locked.chmod(0o755)
    assert "plan error: " in done.stderr
    assert "Permission denied" in done.stderr
    assert _names(locked) == []


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can reach; pytest's own are closed to others."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_a_file_where_a_folder_is_needed_is_a_plan_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(PlanError, match="Cannot write"):
        write_text(tmp_path / "file" / "text.txt", "x")
    with pytest.raises(PlanError, match="is a file"), new_directory(tmp_path / "file"):
        pass
    assert (tmp_path / "file").read_text() == "mine"


def test_a_directory_appears_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "guard"
    with new_directory(path) as folder:
        (folder / "record.json").write_text("{}")
        assert folder.parent == path.parent  # the same disk, so that the rename is one step
        assert not path.exists()
    assert _names(path) == ["record.json"]
    assert _names(path.parent) == ["guard"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_error_inside_leaves_nothing_and_keeps_the_old(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "guard"
    for old in ([], ["record.json"]):
        if old:
            with new_directory(path) as folder:
                (folder / "record.json").write_text("old")
        with pytest.raises(error), new_directory(path) as folder:  # noqa: PT012
            (folder / "record.json").write_text("new")
            raise error
        assert _names(tmp_path) == (["guard"] if old else [])
    assert (path / "record.json").read_text() == "old"


@pytest.mark.parametrize("ours", ["foretaste.json", "record.json"])
def test_our_own_directory_is_replaced_as_a_whole(tmp_path: Path, ours: str) -> None:
    path = tmp_path / "guard"
    path.mkdir()
    (path / ours).write_text("old")
    (path / "left-over").write_text("old")
    with new_directory(path) as folder:
        (folder / "record.json").write_text("new")
    assert _names(path) == ["record.json"]
    assert _names(tmp_path) == ["guard"]


def test_an_empty_directory_is_taken(tmp_path: Path) -> None:
    (tmp_path / "guard").mkdir()
    with new_directory(tmp_path / "guard") as folder:
        (folder / "record.json").write_text("{}")
    assert _names(tmp_path / "guard") == ["record.json"]


@pytest.mark.parametrize("name", ["thesis.tex", ".hidden", "record.json/inner"])
def test_a_foreign_directory_is_refused_before_any_work(tmp_path: Path, name: str) -> None:
    path = tmp_path / "work"
    (path / name).parent.mkdir(parents=True)
    (path / name).write_text("years")
    with pytest.raises(PlanError, match="was not written by Foretaste"):
        refuse_foreign_directory(path)
    started = False
    with pytest.raises(PlanError, match="choose another directory"), new_directory(path):
        started = True
    assert not started
    assert (path / name).read_text() == "years"
    assert _names(tmp_path) == ["work"]


def test_a_digest_is_that_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"abc" * 100_000)
    assert sha256_file(tmp_path / "bytes") == hashlib.sha256(b"abc" * 100_000).hexdigest()

import errno
import os
import resource
import signal
from unittest import mock

import numpy as np
import pytest

from utils import files
from utils.files import ClaimedError, check_writable, claim, read_npz, replacing, write_npz


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_when_the_new_one_is_whole(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("old")
    with replacing(path) as first, replacing(path) as second:
        assert first.parent == tmp_path and first.name.startswith(".") and first.suffix == ".csv"
        assert first != second
        first.write_text("first")
        second.write_text("second")
        assert path.read_text() == "old"
    assert path.read_text() == "first" and names(tmp_path) == ["table.csv"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_who_may_read_a_file_may_read_the_next(tmp_path):
    path = tmp_path / "a.html"
    for mode in (0o600, 0o664):
        path.touch()
        path.chmod(mode)
        with replacing(path) as partial:
            partial.write_text("new")
        assert path.stat().st_mode & 0o777 == mode


def test_a_link_stays_one(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link.csv").symlink_to("there/table.csv")
    with replacing(tmp_path / "link.csv") as partial:
        partial.write_text("new")
    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "there" / "table.csv").read_text() == "new"


@pytest.mark.parametrize("error", [OSError("unplugged"), ValueError("x"), KeyboardInterrupt()])
def test_a_failure_leaves_what_was_there(tmp_path, error):
    path = tmp_path / "table.csv"
    path.write_text("old")
    with pytest.raises(type(error)) as raised, replacing(path) as partial:
        partial.write_text("half")
        raise error
    assert raised.value is error
    assert path.read_text() == "old" and names(tmp_path) == ["table.csv"]


def test_a_full_disk_is_one_line_that_names_the_file(tmp_path):
    """A limit on the size of files stands in for the disk's."""
    path = tmp_path / "big.npz"
    write_npz(path, {"x": np.arange(3)})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
        with pytest.raises(OSError) as raised:
            write_npz(path, {"x": np.random.default_rng(0).random(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert str(raised.value) == f"[Errno 27] File too large: {str(path)!r}"
    assert read_npz(path)["x"].tolist() == [0, 1, 2] and names(tmp_path) == ["big.npz"]


def test_libraries_long_messages_become_the_systems(tmp_path):
    with pytest.raises(OSError) as raised, replacing(tmp_path / "a.csv"):
        raise OSError(28, "Can't write data (file write failed: time = Thu Nov 26\n, filename =")
    assert str(raised.value) == f"[Errno 28] No space left on device: {str(tmp_path / 'a.csv')!r}"


def test_what_cannot_be_written_is_known_before(tmp_path, monkeypatch):
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "old.csv").write_text("old")
    (tmp_path / "link.csv").symlink_to(tmp_path / "gone" / "a.csv")
    for name, message in (
        ("a.txt", "a.txt must end in .csv"),
        ("none/a.csv", "none is no folder; make it"),
        ("old.csv/a.csv", "old.csv is no folder"),
        ("folder.csv", "folder.csv is there and is no file"),
        ("link.csv", "gone is no folder"),
    ):
        with pytest.raises(ValueError, match=message):
            check_writable(tmp_path / name, ".csv")
    with pytest.raises(ValueError, match=r"cannot be written \(File name too long\)"):
        check_writable(
            tmp_path / f"{'猫' * 80}.csv", ".csv"
        )  # 244 bytes, and those of a partial file
    check_writable(tmp_path / "old.csv", ".csv")
    check_writable(tmp_path / "new.csv", ".csv")
    monkeypatch.chdir(tmp_path)
    check_writable("new.csv", ".csv")
    assert names(tmp_path) == ["folder.csv", "link.csv", "old.csv"]


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="the system has no such users")
def test_another_users_file_in_a_folder_like_tmp_is_refused(tmp_path, monkeypatch):
    (tmp_path / "old.csv").touch()
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    check_writable(tmp_path / "old.csv", ".csv")
    tmp_path.chmod(0o1777)
    check_writable(tmp_path / "new.csv", ".csv")
    with pytest.raises(ValueError, match=r"old\.csv is another user's"):
        check_writable(tmp_path / "old.csv", ".csv")
    monkeypatch.undo()
    check_writable(tmp_path / "old.csv", ".csv")


def test_a_folder_is_tried_by_writing(tmp_path, monkeypatch):
    """Whoever runs the test: the system's answer is replaced, as root may write everywhere."""

    def refuse(**_):
        raise OSError(30, os.strerror(30))

    monkeypatch.setattr(files.tempfile, "NamedTemporaryFile", refuse)
    with pytest.raises(ValueError, match=r"cannot be written \(Read-only file system\)"):
        check_writable(tmp_path / "a.csv", ".csv")


def test_a_claim_tells_its_own_errors_from_those_of_the_work(tmp_path, monkeypatch):
    with pytest.raises(NotImplementedError, match="a layer"), claim(tmp_path / "a.npz"):
        raise NotImplementedError("a layer")
    with claim(tmp_path / "a.npz"), pytest.raises(ClaimedError), claim(tmp_path / "a.npz"):
        pass
    assert not names(tmp_path)
    refuse = mock.Mock(side_effect=NotImplementedError("no flock"))
    monkeypatch.setattr(files.filelock.FileLock, "acquire", refuse)
    with pytest.raises(OSError, match="no locks for files"), claim(tmp_path / "a.npz"):
        pass


def test_an_npz_is_written_with_its_folder_and_read_back(tmp_path):
    path = tmp_path / "new" / "a.npz"
    write_npz(path, {"x": np.arange(6).reshape(2, 3), "y": np.array("text"), "z": np.array(1.5)})
    found = read_npz(path)
    assert found.keys() == {"x", "y", "z"} and found["y"].item() == "text"
    np.testing.assert_array_equal(found["x"], np.arange(6).reshape(2, 3))
    assert read_npz(path, ["z", "none"]).keys() == {"z"}


def half_of_an_npz(path, keep):
    np.savez_compressed(path, x=np.random.default_rng(0).random(500), y=np.arange(3))
    path.write_bytes(path.read_bytes()[:keep])


def with_a_changed_byte(path, position):
    np.savez_compressed(path, x=np.random.default_rng(0).random(500))
    content = bytearray(path.read_bytes())
    content[position] ^= 0xFF
    path.write_bytes(content)


def an_npy(path):
    with open(path, "wb") as file:
        np.save(file, np.arange(3))


@pytest.mark.parametrize(
    "damage",
    [
        *(lambda path, k=k: half_of_an_npz(path, k) for k in (0, 3, 10, 500, 3000, -1, -10, -200)),
        *(lambda path, k=k: with_a_changed_byte(path, k) for k in (0, 200, 2000, -30)),
        an_npy,
        lambda path: path.write_bytes(b"text"),
        lambda path: np.savez(path, x=np.array([object()])),
    ],
)
def test_a_damaged_npz_is_a_value_error_that_names_it(tmp_path, damage):
    path = tmp_path / "a.npz"
    damage(path)
    with pytest.raises(ValueError, match=r"a\.npz is damaged or no NumPy archive \(.+\)"):
        read_npz(path)


def test_an_error_without_a_message_is_named(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise EOFError

    monkeypatch.setattr(files.np, "load", fail)
    (tmp_path / "a.npz").touch()
    with pytest.raises(ValueError, match=r"\(EOFError\(\)\)"):
        read_npz(tmp_path / "a.npz")


def test_what_the_disk_could_not_do_is_no_damage(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(files.np, "load", fail)
    (tmp_path / "a.npz").touch()
    with pytest.raises(OSError, match="Input/output error"):
        read_npz(tmp_path / "a.npz")


def test_a_lock_may_be_taken_by_anybody_and_goes_in_the_end(tmp_path):
    """One stays where the process is killed; in a shared folder the next may be another user's."""
    before = os.umask(0o022)
    try:
        with pytest.raises(ValueError, match="stop"), files.claim(tmp_path / "a.npz"):
            mode = (tmp_path / ".a.npz.lock").stat().st_mode & 0o666
            raise ValueError("stop")
    finally:
        os.umask(before)
    if os.name == "posix":
        assert mode == 0o666
        assert not list(tmp_path.iterdir())


def test_a_missing_npz_is_the_systems_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.npz"):
        read_npz(tmp_path / "none.npz")

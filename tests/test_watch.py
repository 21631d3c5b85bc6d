import os

import pytest

from utils import folders
from utils.folders import arrivals
from utils.images import ImageError


class Stop(Exception):
    pass


def seen(folder, *turns):
    """The names that `arrivals` yields; after each look at the folder, the next turn is taken."""
    names, turns = [], iter(turns)

    def wait(seconds):
        assert seconds == 1.0
        turn = next(turns, None)
        if turn is None:
            raise Stop
        turn()

    with pytest.raises(Stop):
        for path in arrivals(folder, wait=wait):
            names.append(path.name)
    return names


def nothing():
    pass


def test_a_file_is_left_until_it_stops_growing(tmp_path):
    (tmp_path / "there.png").write_bytes(b"1")
    growing = tmp_path / "sub" / "growing.png"
    growing.parent.mkdir()

    def write(content):
        return lambda: growing.write_bytes(content)

    turns = write(b"1"), write(b"12"), write(b"123"), nothing, nothing
    assert seen(tmp_path, *turns) == ["there.png", "growing.png"]


def test_what_changes_arrives_again_and_what_goes_may_come_back(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"1")

    def touch():
        os.utime(path, ns=(5, 5))

    def again():
        path.write_bytes(b"1")
        os.utime(path, ns=(5, 5))

    turns = nothing, touch, nothing, nothing, path.unlink, nothing, again, nothing, nothing
    assert seen(tmp_path, *turns) == ["a.png"] * 3


def test_a_folder_that_cannot_be_listed_for_a_while_brings_nothing_new(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.png").write_bytes(b"1")
    refused = [(tmp_path / "sub", "cannot be read: Permission denied")]

    def refuse():
        monkeypatch.setattr(folders, "find_files", lambda *_: ([], refused))

    turns = nothing, nothing, refuse, monkeypatch.undo, nothing, nothing
    assert seen(tmp_path, *turns) == ["a.png"]
    refused[0] = tmp_path, refused[0][1]
    with pytest.raises(ImageError, match="cannot be read: Permission denied"):
        seen(tmp_path, nothing, refuse, nothing)


def test_a_file_that_is_gone_at_once_is_no_arrival(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"1")
    assert seen(tmp_path, path.unlink, nothing, nothing) == []


def test_a_folder_must_be_there(tmp_path):
    with pytest.raises(ImageError, match="no folder"):
        next(arrivals(tmp_path / "none"))
    (tmp_path / "file").touch()
    with pytest.raises(ImageError, match="is no folder"):
        next(arrivals(tmp_path / "file"))

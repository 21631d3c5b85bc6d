"""Files written whole or not at all, by one command at a time; .npz files read or refused."""

import contextlib
import errno
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path

import filelock
import numpy as np

from utils.images import printable


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a partial file's name to write to, which becomes `path` where that succeeds.

    The name is hidden, in the same folder, ends as `path` does and is nobody else's. On any failure
    the partial file is removed, and what was at `path` before is still there. A link at `path`
    stays one: what it leads to is replaced. Who may read or write the old file may so the new one.

    Raises OSError that names `path` where the disk is full or the like. HDF5 files must be made in
    memory first: h5py ends the process where a part of one cannot be written.
    """
    target = Path(os.path.realpath(path))
    partial = target.with_name(f".{secrets.token_hex(4)}.part.{target.name}")
    try:
        yield partial
        with contextlib.suppress(FileNotFoundError):  # there is no old one
            shutil.copymode(target, partial)
        os.replace(partial, target)
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), os.fspath(path)) from error
    finally:
        partial.unlink(missing_ok=True)


def check_writable(path: str | os.PathLike, suffix: str) -> None:
    """ValueError, before any work is done, where a file could not be written in the end."""
    path = Path(path)
    folder = Path(os.path.realpath(path)).parent  # where a link leads
    if path.suffix != suffix:
        raise ValueError(f"{printable(path)} must end in {suffix}")
    if not folder.is_dir():
        raise ValueError(f"{printable(folder)} is no folder; make it, or write elsewhere")
    if path.exists() and not path.is_file():
        raise ValueError(f"{printable(path)} is there and is no file; give another name")
    sticky, user = folder.stat().st_mode & stat.S_ISVTX, getattr(os, "geteuid", lambda: 0)()
    if sticky and path.exists() and user not in (0, folder.stat().st_uid, path.stat().st_uid):
        raise ValueError(
            f"{printable(path)} is another user's, who alone may replace it in that folder; write "
            "elsewhere"
        )
    try:  # os.access knows neither access lists nor a disk that is mounted read-only
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".", suffix=f".part.{path.name}"):
            pass
    except OSError as error:
        raise ValueError(
            f"{printable(path)} cannot be written ({error.strerror}); write elsewhere"
        ) from error


def write_npz(path: str | os.PathLike, arrays: dict[str, np.ndarray]) -> None:
    """Write an .npz whole or not at all, its folder too where that is missing."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial, open(partial, "wb") as file:
        np.savez_compressed(file, **arrays)


def read_npz(
    path: str | os.PathLike, names: Collection[str] | None = None
) -> dict[str, np.ndarray]:
    """The arrays of an .npz, or those of some names that it has; nothing is unpickled.

    Raises OSError where there is no such file or it cannot be opened, and ValueError, with the
    path, where it is cut, damaged or something else.
    """
    refused = refusing(f"{printable(path)} is damaged or no NumPy archive")
    with open(path, "rb") as file, refused, np.load(file, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive if names is None or name in names}


@contextlib.contextmanager
def refusing(what: str, remedy: str = "", passing: tuple[type, ...] = ()) -> Iterator[None]:
    """Within it, whatever damage of a file sets off (zip, zlib, JSON, HDF5) is a ValueError.

    What the system could not do is no damage: OSError with a number passes, but for a damaged
    file's seek to a place that cannot be, and so do MemoryError, ImportError and those of passing.
    """
    try:
        yield
    except (MemoryError, ImportError, *passing):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        raise ValueError(f"{what} ({str(error) or repr(error)}){remedy}") from error


class ClaimedError(OSError):
    """Another process is making the file."""


@contextlib.contextmanager
def claim(path: str | os.PathLike, wait: bool = False) -> Iterator[None]:
    """Within it, or until it dies, this process alone makes a file; its folder is made too.

    Raises ClaimedError where another process has the claim, or waits for that one's end.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # one that another user left behind can be taken, but in a folder with the sticky bit
    file = path.with_name(f".{path.name}.lock")
    lock = filelock.FileLock(file, timeout=-1 if wait else 0, mode=0o666)
    try:
        held = lock.acquire()
    except filelock.Timeout as error:
        raise ClaimedError(
            f"{path} is being made by another command: wait for its end, or write elsewhere"
        ) from error
    except NotImplementedError as error:
        raise OSError(f"the disk of {path} has no locks for files: write elsewhere") from error
    with held:
        try:
            yield
        finally:  # whoever opened it just before may make the file too, which is written whole
            with contextlib.suppress(OSError):  # Windows keeps it
                file.unlink()

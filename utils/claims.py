"""Keeps two commands from making the same file at once."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import filelock


class ClaimedError(OSError):
    """Another process is making the file."""


@contextlib.contextmanager
def claim(path: str | os.PathLike) -> Iterator[None]:
    """Within it, or until it dies, this process alone makes a file; its folder is made too.

    Raises ClaimedError where another process has the claim.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path.with_name(f".{path.name}.lock"), timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise ClaimedError(
            f"{path} is being made by another command: wait for its end, or write elsewhere"
        ) from error
    try:
        yield
        # the file is there, so that nobody claims it again; Windows keeps the lock's file
        with contextlib.suppress(OSError):
            Path(lock.lock_file).unlink()
    finally:
        lock.release()

"""A folder that images arrive in, looked at again and again."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from utils.folders import find_files
from utils.images import ImageError, printable


def arrivals(
    folder: Path, seconds: float = 1.0, wait: Callable[[float], None] = time.sleep
) -> Iterator[Path]:
    """Yields the files of a folder as they arrive, those first that are there already; never ends.

    A file is yielded once its size and time of change have stayed for `seconds`, and again after a
    change. Raises ImageError where it is no folder, also later.
    """
    before, done = {}, {}
    while True:
        if not folder.is_dir():
            raise ImageError(f"{printable(folder)} is no folder, so that nothing can arrive in it")
        now = {path: _state(path) for path in find_files(folder)[0]}
        done = {path: state for path, state in done.items() if path in now}
        for path, state in now.items():
            if state is not None and before.get(path) == state != done.get(path):
                done[path] = state
                yield path
        before = now
        wait(seconds)


def _state(path):
    """What changes while a file is written; None where it is gone already."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns

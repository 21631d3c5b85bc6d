"""Folders and lists of images, of any format, size and colour, as arrays of small square ones."""

import codecs
import contextlib
import os
import stat
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from utils.images import MAX_PIXELS, Deep, ImageError, printable, read_squares
from utils.progress import progress

LEAST_USED = 0.8
"""The share of its images' pixels under which a folder deserves another region."""

LISTED = 10
"""Skipped files, and most anomalous images, that the terminal lists."""


@dataclass(frozen=True)
class Folder:
    """The images of some folders and files.

    paths: n. images: (m, side, side, 3) bytes, the squares of paths[i] from first[i] (n,) on; m = n
    but for the region "tiles". skipped: (path, reason) of the files that are no readable image, and
    of folders left out. white: the value that became 255 in the images of more than 8 bits, None
    where there are none. clipped: how many of these have pixels above it. name, remarks: for
    people, what was read and what is to be said of that.
    """

    paths: list[Path]
    images: np.ndarray
    first: np.ndarray
    skipped: list[tuple[Path, str]]
    white: int | None
    clipped: int
    name: str
    remarks: list[str]

    def part(self, chosen: np.ndarray) -> "Folder":
        """The folder with its images of some numbers alone."""
        squares = np.split(self.images, self.first[1:])
        images, first = _joined([squares[i] for i in chosen])
        return replace(self, paths=[self.paths[i] for i in chosen], images=images, first=first)

    def tiles(self) -> np.ndarray:
        """How many squares each image has (n,)."""
        return np.diff([*self.first, len(self.images)])

    def lowest(self, scores: np.ndarray) -> np.ndarray:
        """The number of each image's square that scores lowest (n,), of scores (m,)."""
        parts = np.split(scores, self.first[1:])
        return self.first + np.array([part.argmin() for part in parts])


def read_folder(
    folder: str | os.PathLike | Iterable[str | os.PathLike],
    side: int,
    *,
    white: int | None = None,
    max_pixels: int = MAX_PIXELS,
    region: str = "centre",
    strict: bool = True,
    verbose: int = 1,
) -> Folder:
    """All images in a folder and its sub-folders, or of several folders and files: `find_files`.

    Each is brought to side x side pixels as `utils.images.read_squares` does. white: for images of
    more than 8 bits; None takes the smallest that is enough for all of them, so that the 12 bits of
    a camera become 8 however its files store them. Files that are no readable image are listed.

    Raises ImageError where a folder is none, or nothing holds a readable image.
    """
    sources = [folder] if isinstance(folder, str | os.PathLike) else list(folder)
    name = ", ".join(map(printable, sources[:3])) + ", ..." * (len(sources) > 3)
    files, skipped = find_files(*sources, strict=strict)
    paths, squares, used = [], [], []
    for path in progress(files, "reading", unit="image", verbose=verbose):
        try:
            found, share = read_squares(path, side, max_pixels=max_pixels, region=region)
        except ImageError as error:
            skipped.append((path, str(error)))
            continue
        paths.append(path)
        squares.append(found)
        used.append(share)
    if not paths:
        if len(skipped) == 1 and skipped[0][0] in map(Path, sources):
            raise ImageError(f"{printable(skipped[0][0])}: {skipped[0][1]}")
        tried = "".join(f"\n  {printable(path)}: {reason}" for path, reason in skipped[:5])
        raise ImageError(f"{name or 'the list'} holds no readable image{tried}")
    deep = [each for each in squares if isinstance(each, Deep)]
    white = (white or max(each.white for each in deep)) if deep else None
    clipped = sum(each.highest > white for each in deep)
    remarks = []
    if deep:
        above = f"; {clipped} of them have pixels above it" if clipped else ""
        remarks.append(f"{name}: in images of more than 8 bits, {white} is white{above}")
    if np.mean(used) < LEAST_USED:
        remarks.append(
            f"warning: {name}: {1 - np.mean(used):.0%} of the pixels lie outside the central "
            "squares and are not looked at: fit with --region whole or tiles to use them"
        )
    joined = _joined([each.to_bytes(white) if isinstance(each, Deep) else each for each in squares])
    return Folder(paths, *joined, skipped, white, clipped, name, remarks)


def _joined(squares):
    """Images' squares, a list of (k, side, side, 3), in one array, and where each image begins."""
    return np.concatenate(squares), np.cumsum([0, *map(len, squares[:-1])])


def report_skipped(folder: Folder) -> None:
    """Lists on stderr the files that could not be read, with a count."""
    for path, reason in folder.skipped[:LISTED]:
        print(f"skipped {printable(path)}: {reason}", file=sys.stderr)
    if len(folder.skipped) > LISTED:
        print(f"... and {len(folder.skipped) - LISTED} more", file=sys.stderr)
    if folder.skipped:
        print(f"{len(folder.skipped)} skipped, {len(folder.paths)} images read", file=sys.stderr)


def listed(file: Path) -> list[str]:
    """The paths that a file lists, one a line; - is standard input."""
    if str(file) == "-" and sys.stdin is None:
        raise ImageError("standard input is closed: no list can come from there")
    content = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # PowerShell's
        content = content.decode("utf-16").encode()
    lines = content.removeprefix(codecs.BOM_UTF8).splitlines()
    return [os.fsdecode(line) for line in lines if line.strip()]


def find_files(
    *sources: str | os.PathLike, strict: bool = True
) -> tuple[list[Path], list[tuple[Path, str]]]:
    """The files in folders and their sub-folders, and (path, reason) of what is left out.

    A source may be a single file too; each path is there once. Sorted within each folder. Links to
    folders are followed, after all that lies in the folder itself; a folder that can be reached in
    several ways is read once. Hidden files and folders, whose names start with a dot, are passed by
    without mention.

    Raises ImageError where a source is not there; with strict False it is among the files.
    """
    found, skipped, seen = [], [], {}
    for source in map(Path, sources):
        if os.path.isdir(source):  # Path's own raises for a name that is too long
            _walk(source, found, skipped, seen)
        elif strict and not os.path.exists(source):
            raise ImageError(f"{printable(source)} is no folder and no file; give what is there")
        else:
            found.append(source)
    return list(dict.fromkeys(found)), skipped


def _walk(folder, found, skipped, seen):
    """`find_files` of one folder; seen: paths of the folders that are not to be read, by inode."""

    def unreadable(error):
        skipped.append((Path(error.filename), f"cannot be read: {error.strerror}"))

    # a link that leads upwards would read all that lies beside the folder
    above = {_identity(parent): parent for parent in folder.resolve().parents}
    pending = [folder]
    for start in pending:  # which grows
        for parent, folders, files in os.walk(start, onerror=unreadable):
            parent = Path(parent)
            try:
                identity = _identity(parent)
            except OSError as error:  # gone meanwhile
                unreadable(error)
                continue
            first = above.get(identity) or seen.setdefault(identity, parent)
            if first is not parent:
                skipped.append((parent, f"leads back to {printable(first)}"))
                folders.clear()
                continue
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            pending += [parent / name for name in folders if (parent / name).is_symlink()]
            for path in (parent / name for name in sorted(files) if not name.startswith(".")):
                try:
                    mode = os.stat(path).st_mode
                except OSError as error:
                    unreadable(error)
                    continue
                if stat.S_ISREG(mode):
                    found.append(path)
                else:
                    skipped.append((path, "neither a file nor a folder"))


def _identity(folder):
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def arrivals(folder: Path, wait: Callable[[float], None] = time.sleep) -> Iterator[Path]:
    """Yields the files of a folder as they arrive, those first that are there already; never ends.

    A file is yielded once its size and time of change have stayed for a second, and again after a
    change. Raises ImageError where it is no folder or cannot be listed, also later.
    """
    before, done = {}, {}
    while True:
        if not os.path.isdir(folder):
            raise ImageError(f"{printable(folder)} is no folder, so that nothing can arrive in it")
        files, skipped = find_files(folder)
        hidden = dict(skipped)  # also folders that cannot be listed, for a while perhaps
        if folder in hidden:
            raise ImageError(f"{printable(folder)} {hidden[folder]}")
        now = {}
        for path in files:
            with contextlib.suppress(OSError):  # it is gone already
                status = path.stat()
                now[path] = status.st_size, status.st_mtime_ns
        done = {
            path: state
            for path, state in done.items()
            if path in now or any(parent in hidden for parent in path.parents)
        }
        for path, state in now.items():
            if before.get(path) == state != done.get(path):
                done[path] = state
                yield path
        before = now
        wait(1.0)

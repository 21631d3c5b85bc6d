"""Damaged, odd and hostile files and folders through detect.py: no traceback, ever.

    python -m benchmarks.fuzz --seed 0 --count 10000 --output results/fuzz.md

Each case makes a folder of files, folders and links, and gives it to fit, score or evaluate with a
tiny network. It must end with a documented exit status; with what was asked for written whole, each
file named either as an image or as skipped; or with one error and nothing written. Cases depend on
the seed and their number alone: `--case 17` runs that one again and keeps its folder.
"""

import argparse
import contextlib
import functools
import io
import json
import os
import re
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from collections import Counter
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
from PIL import Image, features

import detect
from models.recipes import RECIPES
from models.transformation_detector import TransformationDetector
from utils.commands import file_path
from utils.device import commit
from utils.tables import markdown

TINY = {"transformations": "simple", "widen_factor": 1, "samples": 128, "precision": "float32"}
SECONDS = 120
"""Processor time that a case may take; ten times as long by the clock, should it wait for ever."""

FORMATS = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "JPEG": ("L", "RGB", "CMYK"),
    "BMP": ("1", "L", "P", "RGB", "RGBA"),
    "GIF": ("1", "L", "P", "RGB", "RGBA"),
    "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "I", "F"),
    "PPM": ("1", "L", "RGB", "I;16"),
    "TGA": ("L", "P", "RGB", "RGBA"),
    "PCX": ("1", "L", "P", "RGB"),
    "ICO": ("L", "P", "RGB", "RGBA"),
    "SGI": ("L", "RGB", "RGBA"),
    "DDS": ("L", "LA", "RGB", "RGBA"),
}
FORMATS |= {"WEBP": ("RGB", "RGBA")} if features.check("webp") else {}
FORMATS |= {"AVIF": ("RGB", "RGBA")} if features.check("avif") else {}
FORMATS |= {"JPEG2000": ("L", "LA", "RGB", "RGBA")} if features.check("jpg_2000") else {}
SUFFIXES = (".png", ".JPG", ".heic", ".jxl", ".avif", ".eps", ".txt", ".tif", "", ".a b", ".webp")
CHARACTERS = [*"ab0 .-=+@,;:'\"\\$&|<>(){}[]*?~#%!", "\n", "\t", "\x1b[31m", "\x7f", "é", "e\u0301"]
CHARACTERS += ["猫", "\u202e", "\u200d", "😀", "\udcff", "\udc80", "\udced\udca0\udc80", "\ufeff"]


# ----------------------------------------------------------------------------------------- content


def picture(rng) -> bytes:
    """An image file of any format, mode and size, with or without an orientation."""
    form = rng.choice(list(FORMATS))
    mode = str(rng.choice(FORMATS[form]))
    first, more = _pixels(rng, mode), {}
    if form in ("GIF", "WEBP", "TIFF", "PNG") and rng.random() < 0.3:
        more |= {"save_all": True, "append_images": [first.rotate(180), first]}
    if form in ("JPEG", "PNG", "WEBP", "TIFF") and rng.random() < 0.4:
        more["exif"] = Image.Exif()
        more["exif"][0x0112] = int(rng.integers(0, 12))
    if form == "TIFF":
        more["compression"] = str(rng.choice(["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"]))
    if form == "PNG" and rng.random() < 0.2:
        more["transparency"] = 0
    file = io.BytesIO()
    try:
        first.save(file, form, **more)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, struct.error):  # no such mix
        return picture(rng)
    return file.getvalue()


def _pixels(rng, mode):
    width, height = (int(n) for n in rng.choice([1, 2, 3, 16, 33, 64, 200], 2))
    if rng.random() < 0.02:
        width, height = rng.permutation([1, int(rng.integers(1000, 20000))]).tolist()
    noise = rng.integers(0, 256, (height, width, 4), np.uint8)
    if mode in ("I;16", "I", "F"):
        scale = {"I;16": 257, "I": 9999, "F": 0.01}[mode] * int(rng.integers(-1, 2) or 1)
        deep = noise[..., 0].astype(np.float64) * (abs(scale) if mode == "I;16" else scale)
        return Image.fromarray(deep.astype({"I;16": "u2", "I": "i4", "F": "f4"}[mode]))
    image = Image.fromarray(noise if rng.random() < 0.7 else np.full_like(noise, 9))  # RGBA
    return image.convert("RGB").convert(mode) if mode != "RGBA" else image


@functools.cache
def plain_png(side: int) -> bytes:
    """A PNG of one colour, 1 bit a pixel."""
    return png(side, side, zlib.compress(bytes((1 + -(-side // 8)) * side), 1))


def png(width: int, height: int, data: bytes, bits: int = 1) -> bytes:
    """A PNG whose header says so, whatever its data are."""
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", data), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in parts
    )


def damaged(rng, data: bytes) -> bytes:
    """Cut short, or with bytes changed, put in, taken out or repeated."""
    data, (start, stop) = bytearray(data), np.sort(rng.integers(0, len(data) + 1, 2))
    match rng.integers(6):
        case 0:
            del data[start:]
        case 1:
            for at in rng.integers(0, max(len(data), 1), rng.integers(1, 20)) if data else ():
                data[at] = rng.integers(256)
        case 2:
            data[start:start] = rng.bytes(rng.integers(1, 50))
        case 3:
            del data[start:stop]
        case 4:
            data[start:start] = data[start:stop]
        case 5:
            data[start:stop] = bytes(stop - start)
    return bytes(data)


def content(rng) -> bytes:
    """What a file holds."""
    kind = rng.random()
    if kind < 0.45:
        return picture(rng)
    if kind < 0.8:
        return damaged(rng, picture(rng))
    odd = (
        *(b"", b"\0", b"no image\n" * 9, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
        *(rng.bytes(300), b"\0\0\0\x18ftypheic\0\0\0\0heicmif1" + rng.bytes(99), b"\xff\x0a"),
        *(b"P5 9 9 65535\n" + rng.bytes(162), b"P6 99999 99999 255\n", b"<svg xmlns='x'/>"),
        *(png(2**31 - 1, 2**31 - 1, b""), png(60000, 60000, b"x"), png(0, 5, b"")),
        *(b"GIF89a\xff\xff\xff\xff\x80\0\0", b"BM" + b"\xff" * 60, b"II*\0\xff\xff\xff\xff"),
    )
    if rng.random() < 0.04:
        return plain_png(int(rng.choice([5000, 20000])))
    return odd[rng.integers(len(odd))]


# ------------------------------------------------------------------------------------------- cases


def name(rng) -> str:
    """Any name that a file system takes; bytes that are no UTF-8 among its characters."""
    made = "".join(rng.choice(CHARACTERS, rng.integers(1, 9)))
    if rng.random() < 0.03:
        made = "n" * 240
    suffix = str(rng.choice(SUFFIXES))
    return made + suffix if made + suffix not in (".", "..") else "dots"


def fill(rng, root: Path, n: int) -> None:
    """Make n entries in a folder and in folders in it: files, folders, links, pipes."""
    folders = [root]
    for _ in range(n):
        parent = folders[rng.integers(len(folders))]
        path = parent / name(rng)
        if os.path.lexists(path) or len(os.fsencode(path)) > 3500:
            path = parent / f"{rng.integers(10**9)}.png"
        kind = rng.random()
        if kind < 0.1:
            path = path.joinpath(*"d" * int(rng.choice([0, 0, 0, 30])))
            path.mkdir(parents=True)
            folders.append(path)
        elif kind < 0.18:
            others = [*folders, path, root / "gone", root.parent, "/dev/null", *root.iterdir()]
            path.symlink_to(others[rng.integers(len(others))])
        elif kind < 0.19:
            os.mkfifo(path)
        else:
            path.write_bytes(content(rng))
            if rng.random() < 0.03:
                path.chmod(0)
    if rng.random() < 0.1 and folders[1:]:
        folders[-1].chmod(0)


def remove(folder: Path) -> None:
    """The folder, folders in it without permission too."""
    for parent, folders, _ in os.walk(folder):
        for each in folders:
            if not os.path.islink(path := os.path.join(parent, each)):
                os.chmod(path, 0o700)
    shutil.rmtree(folder)


def good(rng, root: Path, n: int) -> None:
    """n images that can be read."""
    root.mkdir()
    for i in range(n):
        Image.fromarray(rng.integers(0, 256, (20, 20), np.uint8)).save(root / f"{i}.png")


def case(seed: int, number: int, work: Path, model: Path) -> tuple[int, str, int]:
    """Make and run a case: entries, command, status. AssertionError where it fails."""
    rng = np.random.default_rng((seed, number))
    root, out = work / "in", work / "out"
    root.mkdir(), out.mkdir()
    n = int(rng.integers(1, 101))
    fill(rng, root, n)
    rng = np.random.default_rng((seed, number, 1))  # whatever Pillow's formats left of the other
    files = [path for path in root.rglob("*") if path.is_file() and not path.is_symlink()]
    kind, asked, sources = rng.random(), [], [root]
    common = ["--quiet"] + ["--max-pixels", "500000000"] * bool(rng.random() < 0.05)
    if kind < 0.05:
        good(rng, work / "good", int(rng.integers(0, 9)))
        asked = [out / "m.keras"]
        command = ["fit", root, work / "good", "--output", *asked, "--recipe", "small"]
        command += ["--false-alarm-rate", "0.4", "--held-out", "0.5"]
        command += ["--region", str(rng.choice(["centre", "whole", "tiles"]))]
    elif kind < 0.2:
        good(rng, work / "good", 3)
        command = ["evaluate", "--normal", work / "good", "--anomalous", root, "--model", model]
    else:
        command = ["score", "--model", model]
        for option, made, often in (
            ("--output", "s.csv", 0.5),
            ("--report", "r.html", 0.3),
            ("--maps", "maps", 0.03),
        ):
            if rng.random() < often:
                asked.append(out / made)
                command += [option, asked[-1]]
        if kind < 0.35 and files:
            sources = [files[i] for i in rng.integers(0, len(files), 3)]
        if kind < 0.25:
            (work / "list").write_bytes(b"\n".join(map(os.fsencode, sources)))
            command += ["--files", work / "list"]
        else:
            command += sources
        command += ["--exit-code"] * bool(rng.random() < 0.2)
        command += ["--json"] * (as_json := bool(rng.random() < 0.5))
    arguments = [os.fspath(each) for each in [*command, *common]]
    status, shown, errors = run(arguments)
    assert status in ((0, 1) if "--exit-code" in arguments else (0,)) + (2,), f"status {status}"
    assert "Traceback" not in errors, errors
    left = [path.name for path in out.iterdir() if path not in asked]
    assert not left, f"left behind: {left}"
    if status == 2:
        assert errors.startswith("error: ") and errors.count("error: ") == 1, errors
        assert not any(path.is_file() for path in asked), f"written in spite of {errors}"
    else:
        assert "error: " not in errors and all(path.exists() for path in asked), errors
        for text in (shown, errors):
            odd = [c for c in text if not c.isprintable() and c != "\n"]
            assert not odd or "--json" in arguments, f"unprintable: {odd}"
    if status != 2 and command[0] == "score":
        check_scores(sources, arguments, shown if as_json else None, out)
    return n, command[0], status


def check_scores(sources, arguments, shown, out):
    """The table and the JSON name every file; the table and the page can be read."""
    if shown is not None:
        values = json.loads(shown)
        named = {each["path"] for part in ("images", "skipped") for each in values[part]}
        expected = set(map(os.fspath, sources)) if sources[0].is_file() else visible(sources[0])
        if "--files" not in arguments or not sources[0].is_file():
            assert expected <= named, f"not named: {expected - named}"
    if (out / "s.csv").exists():
        table = pd.read_csv(out / "s.csv", keep_default_na=False)
        assert len(table) and table["p_value"].between(0, 1).all()
        assert shown is None or len(table) == len(values["images"])
    if (out / "r.html").exists():
        page = (out / "r.html").read_text("utf-8")
        assert page.endswith("</html>") and not re.search("<script", page)


def visible(root):
    """The files in a folder and its folders, hidden ones apart; links to folders not followed."""
    found = set()
    for parent, folders, files in os.walk(root):
        folders[:] = [each for each in folders if not each.startswith(".")]
        found |= {os.path.join(parent, each) for each in files if not each.startswith(".")}
    return found


class Hung(BaseException):
    """A case took longer than SECONDS."""


def run(arguments: list[str]) -> tuple[int, str, str]:
    """detect.py's status, and what it writes, encoded as to a terminal; a warning is an error."""

    def hung(*_):
        raise Hung(f"longer than {SECONDS} s of processor time, or {10 * SECONDS} by the clock")

    streams = [io.TextIOWrapper(io.BytesIO(), "utf-8") for _ in range(2)]
    timers = {signal.ITIMER_PROF: SECONDS, signal.ITIMER_REAL: 10 * SECONDS}
    for timer, seconds in timers.items():
        signal.signal(signal.SIGPROF if timer == signal.ITIMER_PROF else signal.SIGALRM, hung)
        signal.setitimer(timer, seconds)
    try:
        with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
            status = detect.main(arguments)
    finally:
        for timer in timers:
            signal.setitimer(timer, 0)
    for stream in streams:
        stream.flush()
    return status, *(stream.buffer.getvalue().decode() for stream in streams)


# --------------------------------------------------------------------------------------------- all


def fuzz(seed: int, count: int, number: int | None = None) -> dict:
    """Run cases of `count` entries in all, or one of a number; prints what fails."""
    start, counts, n, failed, cases = time.perf_counter(), Counter(), 0, [], 0
    work = Path(tempfile.mkdtemp(prefix="fuzz-"))
    load = functools.cache(TransformationDetector.load)
    with (
        mock.patch.dict(RECIPES, {"small": TINY}),
        mock.patch.object(TransformationDetector, "load", load),
        mock.patch.object(detect, "MAPPED", 2),  # a map takes 200 forward passes
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "__array__ implementation doesn't accept a copy")
        warnings.filterwarnings("ignore", "all training images are the same")
        good(np.random.default_rng(0), work / "good", 100)
        fit = ["fit", str(work / "good"), "--output", str(work / "m.keras"), "--recipe", "small"]
        assert run([*fit, "--quiet"])[0] == 0
        while n < count:
            each = cases if number is None else number
            folder = work / f"case-{each}"
            folder.mkdir()
            try:
                made, command, status = case(seed, each, folder, work / "m.keras")
                counts[command, status] += 1
                n += made
            except (Exception, Hung) as error:
                n += 1
                failed.append(each)
                print(f"case {each}: {''.join(traceback.format_exception(error))}", flush=True)
            cases += 1
            if number is not None:
                print(f"case {each}: {folder}")
                break
            remove(folder)
    if number is None:
        shutil.rmtree(work)
    seconds = time.perf_counter() - start
    return {"counts": counts, "n": n, "failed": failed, "cases": cases, "seconds": seconds}


def main(arguments: list[str] | None = None) -> int:
    """The command at the head of this file; status 1 where a case fails."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=10000, help="of files, folders and links")
    parser.add_argument("--case", type=int, help="run this one alone, and keep its folder")
    parser.add_argument("--output", type=file_path, help="a Markdown file to write")
    options = parser.parse_args(arguments)
    version = commit()  # before the files may change
    found = fuzz(options.seed, options.count, options.case)
    by_status = {
        f"{command}, status {status}": f"{times:,}"
        for (command, status), times in sorted(found["counts"].items())
    }
    rows = {
        "files, folders and links": f"{found['n']:,}",
        "commands": f"{found['cases']:,}",
        **by_status,
        "failures": str(len(found["failed"])),
        "minutes": f"{found['seconds'] / 60:.0f}",
        "date": time.strftime("%Y-%m-%d"),
        "commit": version,
    }
    table = markdown(pd.DataFrame({"what": rows.keys(), f"seed {options.seed}": rows.values()}))
    print(table)
    if options.output:
        options.output.write_text(f"# Fuzzed files, by `benchmarks.fuzz`\n\n{table}\n", "utf-8")
    return int(bool(found["failed"]))


if __name__ == "__main__":
    sys.exit(main())

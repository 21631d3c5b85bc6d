"""What the commands share: how they end, and how they read numbers."""

import argparse
import codecs
import contextlib
import math
import os
import sys
from collections.abc import Callable

from utils.startup import raise_on_interrupt

MAX_SEED = 2**31 - 1


def run_command(function: Callable[..., int | None], *arguments, stopped: str = "stopped") -> int:
    """Call a command's function; returns the exit status, and says on stderr what went wrong.

    The status is the function's, 0 for None; 2 after a line "error: ..." for an OSError or a
    ValueError (which the errors of this project's own files and arguments are); 130 after
    `stopped` for Ctrl-C; and 141, as of other programs, where nobody reads what is written. What
    the encoding of a stream lacks is written to it escaped.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="escaped")
    raise_on_interrupt()
    try:
        status = function(*arguments) or 0
        sys.stdout.flush()
    except BrokenPipeError:
        status = 141
    except (OSError, ValueError) as error:
        status = _say(f"error: {str(error) or repr(error)}", 2)
    except KeyboardInterrupt:
        status = _say(f"\n{stopped}", 130)
    try:
        sys.stdout.flush()
    except OSError:  # Python would try again, and complain, as it ends
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
    return status


def _escaped(error):
    """What an encoding lacks, escaped, but for the line that Keras's progress bars are made of."""
    if set(error.object[error.start : error.end]) == {"\u2501"}:
        return "=" * (error.end - error.start), error.end
    return codecs.backslashreplace_errors(error)


codecs.register_error("escaped", _escaped)


def _say(text, status):
    with contextlib.suppress(BrokenPipeError):
        print(text, file=sys.stderr)
    return status


def number_above_zero(text: str) -> float:
    """A finite number above 0, for argparse."""
    return _parsed(float, text, lambda value: 0 < value < math.inf, "number above 0")


def whole_number(text: str) -> int:
    """A whole number above 0, for argparse."""
    return _parsed(int, text, lambda value: value > 0, "whole number above 0")


def share(text: str) -> float:
    """A number between 0 and 1, both excluded, for argparse."""
    return _parsed(float, text, lambda value: 0 < value < 1, "number between 0 and 1")


def seed_number(text: str) -> int:
    """A seed that every random generator takes, for argparse."""
    return _parsed(
        int, text, lambda value: 0 <= value <= MAX_SEED, f"whole number from 0 to {MAX_SEED}"
    )


def _parsed(convert, text, accepts, what):
    try:
        value = convert(text)
    except ValueError:
        value = math.nan  # which no comparison accepts
    if not accepts(value):
        raise argparse.ArgumentTypeError(f"{text!r} is no {what}")
    return value

"""What the commands share: how they end, and how they read numbers."""

import argparse
import codecs
import contextlib
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from utils import settings
from utils.startup import raise_on_interrupt


def run_command(function: Callable[..., int | None], *arguments, stopped: str = "stopped") -> int:
    """Call a command's function; returns the exit status, and says on stderr what went wrong.

    The status is the function's, 0 for None; 2 after "error: ..." for an OSError or a ValueError,
    which the project's own are, and after the traceback of any other; 130 after `stopped` for
    Ctrl-C; 141 where nobody reads what is written. What the encoding of a stream lacks is written
    to it escaped.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by whoever started the command
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
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
    except Exception:  # Python's own status would be 1, which commands have another use for
        status = _say(traceback.format_exc(), 2)
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


def experiment_parser(description: str) -> argparse.ArgumentParser:
    """A parser with the options that every experiment has."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=description, formatter_class=form)
    add = parser.add_argument
    add("--data-dir", type=file_path, default="data", help="where data sets lie (default: data)")
    add("--results-dir", type=file_path, default="runs", help="default: runs")
    return parser


def file_path(text: str) -> Path:
    """A type for argparse: a path, which no text, such as of an unset variable, is not."""
    if not text:
        raise argparse.ArgumentTypeError("a path is empty; the current folder is '.'")
    return Path(text)


def _argument(convert, check, what):
    """A type for argparse: what text converts to, where a setting's check takes that."""

    def parse(text):
        try:
            return check(what, convert(text))
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no {what}") from None

    return parse


number_above_zero = _argument(float, settings.number(), "number above 0")
whole_number = _argument(int, settings.whole_number(), "whole number above 0")
share = _argument(float, settings.number(below=1.0), "number between 0 and 1")
seed_number = _argument(int, settings.SEED, f"whole number from 0 to {settings.MAX_SEED}")

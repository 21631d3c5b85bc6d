import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import detect
import experiments
import multiclass_experiment
from utils import cats_vs_dogs
from utils.commands import (
    file_path,
    number_above_zero,
    run_command,
    seed_number,
    share,
    whole_number,
)

ROOT = Path(__file__).resolve().parents[1]


def raising(error):
    def function(*_):
        raise error

    return function


@pytest.mark.parametrize(
    "function, status, message",
    [
        (lambda: None, 0, ""),
        (lambda: 1, 1, ""),
        (raising(ValueError("a is 5")), 2, "error: a is 5\n"),
        (raising(FileNotFoundError(2, "none", "x")), 2, "error: [Errno 2] none: 'x'\n"),
        (raising(ValueError()), 2, "error: ValueError()\n"),
        (raising(KeyboardInterrupt), 130, "\nstopped\n"),
        (raising(BrokenPipeError()), 141, ""),
    ],
)
def test_how_a_command_ends(capsys, function, status, message):
    assert run_command(function) == status
    assert capsys.readouterr().err == message


def test_progress_bars_stay_bars():
    code = r"sys.exit(run_command(lambda: print('5/5 \u2501\u2501\u2501 1s \u2502')))"
    assert run(code, PYTHONIOENCODING="ascii").stdout == b"5/5 === 1s \\u2502\n"


def test_arguments_and_the_message_of_an_interruption(capsys):
    assert run_command(lambda *numbers: sum(numbers), 1, 2) == 3
    assert run_command(raising(KeyboardInterrupt), 1, stopped="stopped; go on") == 130
    assert capsys.readouterr().err == "\nstopped; go on\n"


def test_mistakes_of_the_program_are_not_hidden(capsys):
    """Nor is their status 1, by which commands say something else."""
    assert run_command(lambda: 1 / 0) == 2
    assert re.search(r"Traceback.*lambda: 1 / 0.*ZeroDivisionError", capsys.readouterr().err, re.S)


def run(code, stdout=subprocess.PIPE, **environment):
    """Its standard output is buffered, whatever the environment of the tests says."""
    code = f"import sys; from utils.commands import run_command\n{code}"
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"PYTHONUNBUFFERED": ""} | environment,
        stdout=stdout,
        stderr=subprocess.PIPE,
        check=False,
    )


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_what_an_encoding_lacks_is_escaped(encoding):
    code = r"""
def function():
    print("gr\u00f6\u00dfe \u732b")
    raise ValueError("\u732b")
sys.exit(run_command(function))
"""
    found = run(code, PYTHONIOENCODING=encoding)
    assert found.returncode == 2
    text = "größe 猫\n".encode(encoding, "backslashreplace")
    assert found.stdout.replace(b"\r\n", b"\n") == text
    assert found.stderr.strip() == b"error: " + "猫".encode(encoding, "backslashreplace")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_enough_is_no_error(unbuffered):
    """As `| head -1`: here nobody reads at all."""
    read, write = os.pipe()
    os.close(read)
    code = "sys.exit(run_command(lambda: print('x' * 100_000)))"
    found = run(code, stdout=write, PYTHONUNBUFFERED=unbuffered)
    os.close(write)
    assert (found.returncode, found.stderr) == (141, b"")


def test_an_error_is_said_where_nobody_reads_the_output():
    read, write = os.pipe()
    os.close(read)
    code = """
def function():
    print("x")
    raise ValueError("y")
sys.exit(run_command(function))
"""
    found = run(code, stdout=write)
    os.close(write)
    assert (found.returncode, found.stderr) == (2, b"error: y\n")


@pytest.mark.skipif(os.name != "posix", reason="closes descriptors as a Unix shell does")
@pytest.mark.parametrize("closed", [1, 2])
def test_a_stream_that_is_closed_is_no_error(closed):
    """As `>&-` and `2>&-`."""
    code = "sys.exit(run_command(lambda: print('x') or print('y', file=sys.stderr) or 3))"
    shell = f'exec "$0" "$@" {closed}>&-'
    code = f"import sys; from utils.commands import run_command\n{code}"
    found = subprocess.run(
        ["sh", "-c", shell, sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=False
    )
    streams = {1: found.stdout, 2: found.stderr}
    assert found.returncode == 3 and streams[3 - closed] == {1: b"y\n", 2: b"x\n"}[closed]


def test_ctrl_c_is_an_exception_again():
    code = """
import os, signal
from utils.startup import stop_on_interrupt
signal.signal(signal.SIGINT, signal.default_int_handler)
stop_on_interrupt()
sys.exit(run_command(lambda: os.kill(os.getpid(), signal.SIGINT)))
"""
    found = run(code)
    assert (found.returncode, found.stderr) == (130, b"\nstopped\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux's device that is always full")
def test_output_that_cannot_be_written_is_said_once():
    with open("/dev/full", "wb") as full:
        found = run("sys.exit(run_command(lambda: print('x')))", stdout=full)
    assert found.returncode == 2
    assert found.stderr == b"error: [Errno 28] No space left on device\n"


def test_numbers_that_are_none_are_named_with_what_is_wanted():
    for parse, text, value in (
        (number_above_zero, "0.5", 0.5),
        (whole_number, "12", 12),
        (share, "0.2", 0.2),
        (seed_number, "0", 0),
        (seed_number, "2147483647", 2147483647),
    ):
        assert parse(text) == value and type(parse(text)) is type(value)
    for parse, texts, wanted in (
        (number_above_zero, ("abc", "0", "-1", "nan", "inf", ""), "number above 0"),
        (whole_number, ("abc", "0", "-1", "1.5", "1e6"), "whole number above 0"),
        (share, ("20%", "0", "1", "nan", "-0.1"), "number between 0 and 1"),
        (seed_number, ("-1", "x", "2147483648"), "whole number from 0 to 2147483647"),
    ):
        for text in texts:
            with pytest.raises(argparse.ArgumentTypeError) as raised:
                parse(text)
            assert str(raised.value) == f"{text!r} is no {wanted}"


@pytest.mark.parametrize(
    ("main", "arguments"),
    [
        (detect.main, ["score", "", "--model", "x.keras"]),
        (detect.main, ["fit", "a", "--output", ""]),
        (experiments.main, ["--results-dir", ""]),
        (experiments.main, ["--beside", "results", ""]),
        (multiclass_experiment.main, ["--data-dir", ""]),
        (cats_vs_dogs.main, ["cats_vs_dogs", ""]),
    ],
)
def test_an_empty_path_is_not_the_current_folder(main, arguments, capsys):
    assert file_path("images") == Path("images")
    with pytest.raises(SystemExit) as raised:
        main(arguments)
    assert raised.value.code == 2
    assert "a path is empty; the current folder is '.'" in capsys.readouterr().err

"""A few cases of benchmarks.fuzz, and that it finds what fails."""

import re

import pytest

import detect
from benchmarks import fuzz


def test_a_few_cases_hold(tmp_path, capsys):
    """`python -m benchmarks.fuzz` runs thousands."""
    table = tmp_path / "fuzz.md"
    assert fuzz.main(["--seed", "955", "--count", "40", "--output", str(table)]) == 0
    written = table.read_text(encoding="utf-8")
    assert re.search(r"^\| failures +\| 0 ", written, re.MULTILINE)
    for command in ("fit", "score", "evaluate"):
        assert re.search(rf"^\| {command}, status \d +\| [1-9]", written, re.MULTILINE), command
    assert written.partition("\n\n")[2] == capsys.readouterr().out


def raising(*_):
    raise TypeError("a slip")


def silent(options):
    return 0


def loud(options):
    raise ValueError("of no use") from None


@pytest.mark.parametrize("function", [raising, silent, loud])
def test_failures_are_found(function, monkeypatch, capsys):
    """A traceback, files that are not written, and some that are in spite of an error."""
    score = detect.score

    def broken(options):
        if function is loud:
            score(options)
        return function(options)

    broken.__name__, broken.__doc__ = "score", score.__doc__
    monkeypatch.setattr(detect, "score", broken)
    assert fuzz.main(["--seed", "955", "--count", "40"]) == 1
    assert re.search(r"^case \d+: Traceback", capsys.readouterr().out, re.MULTILINE)

"""Tables for people: numbers as text, and rows as Markdown."""

import pandas as pd


def number(value: float, form: str = ".1f") -> str:
    """A number as text; nothing for a missing one."""
    return "" if pd.isna(value) else format(value, form)


def with_sem(mean: float, sem: float) -> str:
    """`86.2 ± 0.3`, or the mean alone where there is no standard error."""
    return number(mean) + ("" if pd.isna(sem) else f" ± {number(sem)}")


def markdown(table: pd.DataFrame) -> str:
    """A table in Markdown, its columns as wide as their widest cell, the index left out."""
    columns = [[name, *map(str, table[name])] for name in table]
    widths = [max(map(len, column)) for column in columns]
    header, *rows = zip(*columns, strict=True)
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(f"| {' | '.join(map(str.ljust, line, widths))} |" for line in lines)

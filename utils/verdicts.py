"""What is said of scored images: a table of them, and how sure its flags are."""

import csv
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from utils.files import replacing
from utils.images import printable, spreadsheet_safe
from utils.threshold import anomaly_scores, false_alarm_interval, p_values


def verdicts(
    paths: Sequence[Path], scores: np.ndarray, held_out: np.ndarray, threshold: float
) -> pd.DataFrame:
    """A row an image, the most anomalous first; its index is the image's number in `paths`.

    Columns: path, p_value, anomaly_score (see `utils.threshold`), is_anomaly, score.
    """
    table = pd.DataFrame(
        {
            "path": pd.Series(list(paths), dtype=object),
            "p_value": p_values(held_out, scores),
            "anomaly_score": anomaly_scores(held_out, scores),
            "is_anomaly": scores < threshold,
            "score": scores,
        }
    )
    return table.sort_values("score", kind="stable")


def write_csv(path: str | os.PathLike, table: pd.DataFrame) -> None:
    """Write a table of `verdicts`, its paths safe to open in a spreadsheet."""
    table = table.assign(path=table["path"].map(spreadsheet_safe))
    with replacing(path) as partial:
        table.to_csv(partial, index=False, quoting=csv.QUOTE_NONNUMERIC, encoding="utf-8")


def records(table: pd.DataFrame) -> list[dict]:
    """The rows of a table of `verdicts` as plain values, fit for JSON."""
    return table.assign(path=table["path"].map(os.fspath)).to_dict("records")


def as_text(table: pd.DataFrame) -> str:
    """A table of `verdicts` for people, with the path at the end of its line."""
    lines = [f"{'p-value':>9} {'anomaly score':>14}  {'':8} {'raw score':>12}"]
    for row in table.itertuples():
        mark = "anomaly" if row.is_anomaly else "normal"
        numbers = f"{row.p_value:9.4f} {row.anomaly_score:14.2f}  {mark:8} {row.score:12.6g}"
        lines.append(f"{numbers}  {printable(row.path)}")
    return "\n".join(lines)


def text_histogram(values: np.ndarray, columns: int = 40) -> str:
    """Anomaly scores (n,) as a histogram of lines, a bar a standard deviation."""
    edges = np.arange(-1, 6)
    counts = np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1)
    labels = [f"under {edges[0]}", *(f"{a} to {a + 1}" for a in edges[:-1]), f"{edges[-1]} or more"]
    return "\n".join(
        f"{label:>11} {count:6} {'#' * round(columns * count / counts.max())}"
        for label, count in zip(labels, counts, strict=True)
    )


def threshold_statement(n: int, false_alarm_rate: float) -> str:
    """Which images are flagged, and how far the rate of normal ones among them is known.

    n: how many held-out images chose the threshold.
    """
    expected, low, high = (100 * each for each in false_alarm_interval(n, false_alarm_rate))
    return (
        f"Flagged where the p-value is at most {false_alarm_rate:g}: {expected:.1f} % of normal "
        f"images are expected to be (95 % interval: {low:.1f} to {high:.1f} %, by {n} held-out "
        "images)"
    )


def share_interval(count: int, n: int) -> tuple[float, float, float]:
    """count of n in percent, with the Clopper-Pearson 95 % confidence interval."""
    low, high = binomtest(count, n).proportion_ci(0.95, "exact")
    return 100 * count / n, 100 * float(low), 100 * float(high)

"""The report of a scored folder: one HTML file with its pictures inside, which needs no network."""

import base64
import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template

import numpy as np
from matplotlib.ticker import MaxNLocator
from PIL import Image

from utils.files import replacing
from utils.images import ImageError, printable

SHOWN_ANOMALOUS, SHOWN_NORMAL, SHOWN_FLAGGED = 24, 16, 60
THUMBNAIL = 112
BINS = 60


@dataclass(frozen=True)
class Report:
    """What a report shows of n images.

    paths: n. images: (n, side, side, 3) bytes, as the network saw them. scores, p_values: (n,).
    skipped: (path, reason). held_out_scores: of the images that chose the threshold.
    read: from a path and a side to the image, as `utils.images.read_image`, whose errors it raises.
    transformations: k tuples (flip, tx, ty, k). responses: from image numbers (m,) to their softmax
    responses (m, k, k). model: labels and texts on how the model was made.
    """

    folder: Path
    paths: list[Path]
    images: np.ndarray
    scores: np.ndarray
    p_values: np.ndarray
    skipped: list[tuple[Path, str]]
    threshold: float
    threshold_statement: str
    held_out_scores: np.ndarray
    read: Callable[[Path, int], np.ndarray]
    transformations: Sequence[tuple[bool, int, int, int]]
    responses: Callable[[np.ndarray], np.ndarray]
    model: dict[str, str]


def write_report(path: str | os.PathLike, report: Report) -> None:
    """Write the report, with its most anomalous, most normal and flagged images, to one file."""
    order = np.argsort(report.scores, kind="stable")
    flagged = order[report.scores[order] < report.threshold]
    explained = np.append(flagged[:SHOWN_FLAGGED], order[-1])  # the most normal, to compare with
    responses = report.responses(explained)
    *rows, most_normal = (
        _explanation(report, i, y) for i, y in zip(explained, responses, strict=True)
    )
    more = len(flagged) - len(rows)
    half = -(-len(order) // 2)  # of a small folder, no image is both
    page = _PAGE.substitute(
        folder=escape(printable(report.folder)),
        n=f"{len(order):,}",
        flagged=f"{len(flagged):,}",
        share=f"{100 * len(flagged) / len(order):.1f} %",
        skipped=f"{len(report.skipped):,}",
        threshold=escape(report.threshold_statement),
        histogram=histogram(report.scores, report.held_out_scores, report.threshold),
        anomalous="".join(_card(report, i) for i in order[:half][:SHOWN_ANOMALOUS]),
        normal="".join(_card(report, i) for i in order[half:][::-1][:SHOWN_NORMAL]),
        explanations="".join(rows) or "<p>No image is flagged.</p>",
        more=f"<p>{more:,} more are flagged; the CSV file lists them.</p>" if more else "",
        reference=most_normal,
        legend=_legend(report.transformations),
        model=_table(report.model.items()),
        skipped_files=_skipped(report.skipped),
    )
    with replacing(path) as partial:
        partial.write_text(page, encoding="utf-8")


def histogram(scores: np.ndarray, held_out: np.ndarray, threshold: float) -> str:
    """An SVG of the scores, those under the threshold in another colour, over the held-out ones'.

    The two are drawn as shares. Scores far below the rest are gathered in the first bar.
    """
    everything = np.concatenate([scores, held_out])
    low, quarter, top = np.quantile(everything, [0, 0.25, 1])
    low = min(max(low, quarter - 5 * (top - quarter)), threshold)
    width = (top - low) / BINS or 1.0
    # the threshold lies between two bars, so that each is of one colour
    first = int(np.ceil((threshold - low) / width))
    edges = threshold + width * np.arange(-first, BINS - first + 2)
    gathered = (everything < edges[0]).any()
    bars, outline = (
        np.histogram(np.maximum(each, edges[0]), edges)[0] / len(each)
        for each in (scores, held_out)
    )
    right, bottom, highest = 900, 200, max(bars.max(), outline.max())

    def x(score):
        return right * (score - edges[0]) / (edges[-1] - edges[0])

    def y(share):
        return bottom - 180 * share / highest

    parts = []
    for i, share in enumerate(bars):
        if share:
            kind = "flagged" if i < first else "scored"
            title = f"{edges[i]:,.5g} to {edges[i + 1]:,.5g}: {round(share * len(scores))} images"
            parts.append(
                f'<rect class="{kind}" x="{x(edges[i]):.1f}" y="{y(share):.1f}" '
                f'width="{x(edges[i + 1]) - x(edges[i]) - 1:.1f}" '
                f'height="{bottom - y(share):.1f}"><title>{title}</title></rect>'
            )
    steps = "".join(
        f"L{x(a):.1f},{y(v):.1f}L{x(b):.1f},{y(v):.1f}"
        for a, b, v in zip(edges[:-1], edges[1:], outline, strict=True)
    )
    parts.append(f'<path class="held-out" d="M0,{bottom}{steps}L{right},{bottom}"/>')
    parts.append(f'<line class="axis" x1="0" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    if gathered:
        parts.append('<text x="0" y="220">and lower</text>')
    for tick in MaxNLocator(8).tick_values(edges[0], edges[-1]):
        if 90 * gathered + 30 < x(tick) < right - 30:
            parts.append(f'<text x="{x(tick):.1f}" y="220" text-anchor="middle">{tick:,.6g}</text>')
    at = x(threshold)
    anchor, shift = ("start", 6) if at < right / 2 else ("end", -6)
    parts.append(f'<line class="threshold" x1="{at:.1f}" x2="{at:.1f}" y1="0" y2="{bottom}"/>')
    parts.append(
        f'<text class="threshold" x="{at + shift:.1f}" y="12" text-anchor="{anchor}">'
        f"threshold {threshold:,.5g}</text>"
    )
    return f'<svg viewBox="-4 -4 {right + 8} 232" role="img">{"".join(parts)}</svg>'


def mistakes(
    transformations: Sequence[tuple[bool, int, int, int]], responses: np.ndarray
) -> dict[str, float]:
    """How much of the network's belief, of 1, is in another flip, shift or rotation than was done.

    responses: softmax responses (k, k), row i for transformation i. Parts that no two of the
    transformations differ in are left out.
    """
    flip, tx, ty, k = (np.array(column) for column in zip(*transformations, strict=True))
    found = {}
    for name, part in (("flip", flip), ("shift", tx * 1_000_000 + ty), ("rotation", k)):
        other = part[:, None] != part[None, :]
        if other.any():
            found[name] = float((responses * other).sum(-1).mean())
    return found


def response_grid(
    transformations: Sequence[tuple[bool, int, int, int]], responses: np.ndarray, cell: int = 14
) -> str:
    """An SVG with a cell a transformation, dark where the network did not recognise it.

    Rows are flips and rotations, columns are shifts. responses: (k, k), as for `mistakes`.
    """
    rows, columns = _axes(transformations)
    cells = []
    for i, (flip, tx, ty, k) in enumerate(transformations):
        right, taken_for = responses[i, i], int(np.argmax(responses[i]))
        title = f"{_name(transformations[i])}: recognised with probability {right:.2f}"
        if taken_for != i:
            title += (
                f", taken for {_name(transformations[taken_for])} ({responses[i, taken_for]:.2f})"
            )
        cells.append(
            f'<rect x="{columns.index((tx, ty)) * cell}" y="{rows.index((flip, k)) * cell}" '
            f'width="{cell - 1}" height="{cell - 1}" fill="{_colour(right)}">'
            f"<title>{title}</title></rect>"
        )
    width, height = cell * len(columns), cell * len(rows)
    return (
        f'<svg class="grid" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'role="img">{"".join(cells)}</svg>'
    )


def _axes(transformations):
    """The rows (flip, k) and the columns (tx, ty) of a grid of transformations, in their order."""
    rows = dict.fromkeys((flip, k) for flip, _, _, k in transformations)
    columns = dict.fromkeys((tx, ty) for _, tx, ty, _ in transformations)
    return list(rows), list(columns)


def _name(transformation):
    flip, tx, ty, k = transformation
    parts = ["flip"] * bool(flip) + [f"shift {_shift(tx, ty)}"] * bool(tx or ty)
    return " and ".join(parts + [f"turn {90 * k}°"] * bool(k)) or "unchanged"


def _shift(tx, ty):
    return ", ".join(f"{pixels:+d}" if pixels else "0" for pixels in (tx, ty))


def _colour(probability):
    """From dark red, not recognised, through orange to pale, recognised."""
    stops = np.array([[122, 16, 32], [232, 116, 59], [250, 226, 178], [237, 243, 238]])
    channels = [np.interp(probability, [0, 1 / 3, 2 / 3, 1], column) for column in stops.T]
    return "#" + "".join(f"{round(channel):02x}" for channel in channels)


def _thumbnail(report, i):
    """The square that the network saw, sharper, as a data URI."""
    try:
        pixels = report.read(report.paths[i], THUMBNAIL)
    except ImageError:  # changed or gone since it was scored
        pixels = report.images[i]
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _card(report, i):
    name = escape(printable(report.paths[i]))
    kind = "flagged" if report.scores[i] < report.threshold else "passed"
    return (
        f'<figure class="{kind}" title="{name}"><img src="{_thumbnail(report, i)}" alt="">'
        f"<figcaption><b>{report.scores[i]:.5g}</b><span>p {report.p_values[i]:.3f}</span>"
        f"<bdi>{escape(printable(report.paths[i].name))}</bdi></figcaption></figure>"
    )


def _explanation(report, i, responses):
    grid = response_grid(report.transformations, responses)
    bars = "".join(
        f'<div class="bar"><span>{name}</span><i><b style="width:{100 * value:.1f}%"></b></i>'
        f"<span>{100 * value:.0f} %</span></div>"
        for name, value in mistakes(report.transformations, responses).items()
    )
    return f'<div class="why">{_card(report, i)}{grid}<div class="bars">{bars}</div></div>'


def _legend(transformations):
    rows, columns = _axes(transformations)
    scale = "".join(
        f'<i style="background:{_colour(p)}"></i>' for p in np.linspace(0, 1, 12).round(3)
    )
    down = ", ".join(_name((flip, 0, 0, k)) for flip, k in rows)
    across = ", ".join(f"({_shift(tx, ty)})" if tx or ty else "none" for tx, ty in columns)
    return (
        f'<p class="scale">not recognised {scale} recognised</p>'
        f"<p>Rows, downwards: {down}. Columns, shifts by rows and columns of pixels: {across}.</p>"
    )


def _table(rows):
    cells = "".join(
        f"<tr><th>{escape(printable(label))}</th><td>{escape(printable(text))}</td></tr>"
        for label, text in rows
    )
    return f"<table>{cells}</table>"


def _skipped(skipped):
    if not skipped:
        return ""
    rows = _table((printable(path), reason) for path, reason in skipped)
    return f"<h2>Files that are no readable image</h2>{rows}"


_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Anomalies in $folder</title>
<style>
:root { --ink: #1d2733; --soft: #5d6b7a; --line: #dde3ea; --blue: #3b74b8; --red: #c4352f; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1080px; padding: 28px 24px 60px; color: var(--ink);
  background: #fff; font: 15px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { font-size: 26px; margin: 0 0 18px; overflow-wrap: anywhere; }
h2 { font-size: 19px; margin: 38px 0 8px; }
p { margin: 6px 0 12px; color: var(--soft); max-width: 62em; }
.tiles { display: flex; flex-wrap: wrap; gap: 12px; }
.tiles div { border: 1px solid var(--line); border-radius: 8px; padding: 10px 18px; }
.tiles b { display: block; font-size: 24px; line-height: 1.25; }
.tiles .red b { color: var(--red); }
.tiles span, .key { color: var(--soft); font-size: 13px; }
svg { display: block; width: 100%; height: auto; }
svg text { font-size: 12px; fill: var(--soft); }
rect.scored { fill: #9dbde0; } rect.flagged { fill: #e2807b; }
path.held-out { fill: none; stroke: var(--ink); stroke-width: 1.3; }
line.axis { stroke: var(--line); }
line.threshold { stroke: var(--red); stroke-width: 1.5; stroke-dasharray: 5 4; }
svg text.threshold { fill: var(--red); font-weight: 600; }
.key i { display: inline-block; width: 14px; height: 10px; margin: 0 5px 0 14px; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(116px, 1fr)); gap: 12px; }
figure { margin: 0; width: 116px; border: 2px solid transparent; border-radius: 6px;
  overflow: hidden; background: #f3f6f9; }
figure.flagged { border-color: var(--red); }
figure img { display: block; width: 112px; height: 112px; }
figcaption { padding: 3px 6px 5px; font-size: 12px; line-height: 1.35; }
figcaption b { margin-right: 7px; }
figcaption span { color: var(--soft); white-space: nowrap; }
figcaption bdi { display: block; color: var(--soft); white-space: nowrap; overflow: hidden;
  text-overflow: ellipsis; }
.whys { display: grid; grid-template-columns: repeat(auto-fill, minmax(460px, 1fr)); gap: 14px; }
.why { display: flex; align-items: center; gap: 14px; border: 1px solid var(--line);
  border-radius: 8px; padding: 8px; }
.why figure, .why svg { flex: none; }
svg.grid { width: auto; }
.bars { flex: 1; font-size: 12.5px; min-width: 130px; }
.bar { display: grid; grid-template-columns: 54px 1fr 38px; align-items: center; gap: 6px; }
.bar span:last-child { text-align: right; }
.bar i { background: #edf1f5; height: 9px; border-radius: 4px; overflow: hidden; }
.bar b { display: block; height: 100%; background: #e8743b; }
.reference { max-width: 520px; margin-bottom: 14px; }
.scale { display: flex; align-items: center; gap: 0; }
.scale i { width: 16px; height: 12px; } .scale i:first-of-type { margin-left: 8px; }
.scale i:last-of-type { margin-right: 8px; }
table { border-collapse: collapse; font-size: 14px; }
th, td { text-align: left; vertical-align: top; padding: 4px 14px 4px 0; overflow-wrap: anywhere;
  border-bottom: 1px solid var(--line); font-weight: normal; }
th { color: var(--soft); min-width: 210px; }
</style>
</head>
<body>
<h1>Anomalies in $folder</h1>
<div class="tiles">
<div><b>$n</b><span>images scored</span></div>
<div class="red"><b>$flagged</b><span>flagged as anomalies, $share</span></div>
<div><b>$skipped</b><span>files skipped</span></div>
</div>

<h2>Scores</h2>
<p>The higher the score, the more normal the image. $threshold.</p>
$histogram
<div class="key"><i style="background:#9dbde0"></i>scored images
<i style="background:#e2807b"></i>flagged
<i style="border-top:2px solid #1d2733;height:0;vertical-align:middle"></i>normal images held out
from training, as shares of their number</div>

<h2>The most anomalous</h2>
<p>Score, and p-value: the share of held-out normal images that scored lower. Flagged images have
a red frame.</p>
<div class="cards">$anomalous</div>

<h2>The most normal</h2>
<div class="cards">$normal</div>

<h2>What the network confused</h2>
<p>The network saw each image flipped, shifted and turned in many ways, and was asked each time what
had been done. It learnt that on normal images. The grid has a cell for each way, dark where the
network was wrong, and the bars say how much of its belief was in another flip, shift or rotation.
At 50 % a flip is a guess: mirrored, many normal images are as normal. Point at a cell to read what
it was taken for. First, to compare, the most normal image.</p>
$legend
<div class="reference">$reference</div>
<div class="whys">$explanations</div>
$more

<h2>How the model was made</h2>
$model
$skipped_files
</body>
</html>
""")

"""The report of a scored folder: one HTML file with its pictures inside, which needs no network.

The page is `templates/report.html`, which escapes all text that it is given.
"""

import base64
import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import numpy as np
import pandas as pd
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.ticker import MaxNLocator
from PIL import Image

from utils.files import replacing
from utils.images import ImageError, printable
from utils.progress import progress

MAPPED, SHOWN_NORMAL, EXPLAINED = 24, 16, 60
"""How many of the most anomalous have a map at least; of the most normal are shown whatever the
budget; of the flagged are explained."""

THUMBNAIL = 112
ENLARGED = 64
"""Thumbnails of fewer pixels a side are kept exactly, and enlarged without blur."""

BUDGET = 2_500_000
"""Bytes of pictures on a page."""

BINS = 60

RED = (224, 32, 24)
STRONGEST = 190
"""The alpha, of 255, of a map's highest pixel."""

COLOURS = LinearSegmentedColormap.from_list("", ["#7a1020", "#e8743b", "#fae2b2", "#edf3ee"])

TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
)
TEMPLATES.filters["printable"] = printable


@dataclass(frozen=True)
class Report:
    """What a report shows of n images.

    table: `models.image_scorer.verdicts`, n rows. images: (n, side, side, 3) bytes, as the network
    saw them. skipped: (path, reason). held_out: anomaly scores of the images that chose the
    threshold, which is an anomaly score too. read: from a path and a side to the image, as
    `utils.images.read_image` with enlarge False, whose errors it raises.
    transformations: k tuples (flip, tx, ty, k). responses: from image numbers (m,) to their softmax
    responses (m, k, k). maps: from image number to its anomaly map (side, side), of some.
    model: labels and texts on how the model was made. verbose: 0 shows no progress.
    """

    folder: str | os.PathLike
    table: pd.DataFrame
    images: np.ndarray
    skipped: list[tuple[Path, str]]
    held_out: np.ndarray
    threshold: float
    threshold_statement: str
    read: Callable[[Path, int], np.ndarray]
    transformations: Sequence[tuple[bool, int, int, int]]
    responses: Callable[[np.ndarray], np.ndarray]
    model: dict[str, str]
    maps: dict[int, np.ndarray]
    verbose: int = 0


def write_report(path: str | os.PathLike, report: Report) -> None:
    """Write the report to one file: all images, as many as fit BUDGET with a picture."""
    table = report.table
    by_name = sorted(table.index, key=lambda i: (table["path"][i].name, table["path"][i]))
    table = table.assign(name_rank=pd.Series(range(len(table)), by_name), rank=range(len(table)))
    rows = {row.Index: row for row in table.itertuples()}
    cards = _cards(report, rows)
    flagged = table.index[table["is_anomaly"]]
    explained = np.append(flagged[:EXPLAINED], table.index[-1])  # the most normal, to compare with
    *explanations, reference = (
        cards[i]
        | {
            "grid": response_grid(report.transformations, responses),
            "mistakes": mistakes(report.transformations, responses),
        }
        for i, responses in zip(explained, report.responses(explained), strict=True)
    )
    axes = _axes(report.transformations)
    page = TEMPLATES.get_template("report.html").render(
        report=report,
        n=len(table),
        n_flagged=len(flagged),
        histogram=histogram(-table["anomaly_score"], -report.held_out, -report.threshold),
        cards=[cards[i] for i in table.index if i in cards],
        rest=[row for i, row in rows.items() if i not in cards],
        explanations=explanations,
        reference=reference,
        normal=SHOWN_NORMAL,
        scale=[_colour(p) for p in np.linspace(0, 1, 12)],
        rows=[_name((flip, 0, 0, k)) for flip, k in axes[0]],
        columns=[f"({_shift(tx, ty)})" if tx or ty else "none" for tx, ty in axes[1]],
    )
    with replacing(path) as partial:
        partial.write_text(page, encoding="utf-8")


def _cards(report, rows):
    """What the page shows of images with a picture, by number: some of the most normal, then the
    most anomalous, to the budget."""
    numbers, cards, size = list(rows), {}, 0
    first = dict.fromkeys([*numbers[-SHOWN_NORMAL:], *numbers])
    for i in progress(first, "drawing", unit="image", verbose=report.verbose):
        try:
            pixels = report.read(rows[i].path, THUMBNAIL)
        except ImageError:  # changed or gone since it was scored
            pixels = report.images[i]
        small = len(pixels) < ENLARGED
        picture = _data(Image.fromarray(pixels), quality=80, lossless=small)
        map_ = _data(heat(report.maps[i]), lossless=True) if i in report.maps else ""
        size += len(picture) + len(map_)
        if size > BUDGET:
            break
        cards[i] = {"row": rows[i], "picture": picture, "heat": map_, "small": small}
    return cards


def _data(picture, **settings):
    """A picture as a data URI."""
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", **settings)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def histogram(scores: np.ndarray, held_out: np.ndarray, threshold: float) -> str:
    """An SVG of negative anomaly scores, those under the threshold in another colour, as shares.

    Over them, the held-out images'. Scores far below the rest are gathered in the first bar. The
    axis has the anomaly scores themselves.
    """
    everything = np.concatenate([scores, held_out])
    low, quarter, top = np.quantile(everything, [0, 0.25, 1])
    low, top = min(max(low, quarter - 5 * (top - quarter)), threshold), max(top, threshold)
    width = (top - low) / BINS or 1.0
    # the threshold lies between two bars, so that each is of one colour
    first = int(np.ceil((threshold - low) / width))
    edges = threshold + width * np.arange(-first, BINS - first + 2)
    counts, outline = (
        np.histogram(np.maximum(each, edges[0]), edges)[0] for each in (scores, held_out)
    )
    shares, outline = counts / len(scores), outline / len(held_out)
    highest = max(shares.max(), outline.max())
    return _parts().histogram(
        edges=edges,
        counts=counts,
        shares=shares / highest,
        outline=outline / highest,
        first=first,
        marks=MaxNLocator(8).tick_values(edges[0], edges[-1]),
        gathered=(everything < edges[0]).any(),
    )


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
    transformations: Sequence[tuple[bool, int, int, int]], responses: np.ndarray
) -> str:
    """An SVG with a cell a transformation, dark where the network did not recognise it.

    Rows are flips and rotations, columns are shifts. responses: (k, k), as for `mistakes`.
    """
    rows, columns = _axes(transformations)
    cells = [
        {
            "place": (columns.index((tx, ty)), rows.index((flip, k))),
            "name": _name((flip, tx, ty, k)),
            "right": own[i],
            "colour": _colour(own[i]),
            "other": "" if own.argmax() == i else _name(transformations[own.argmax()]),
            "belief": own.max(),
        }
        for i, ((flip, tx, ty, k), own) in enumerate(zip(transformations, responses, strict=True))
    ]
    return _parts().grid(cells=cells, width=len(columns), height=len(rows))


def _parts():
    """The macros of parts.html, compiled when a report is written and not when this is imported."""
    return TEMPLATES.get_template("parts.html").module


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
    return to_hex(COLOURS(float(probability)))


def heat(anomaly_map: np.ndarray) -> Image.Image:
    """A map (h, w) as a red picture, the more opaque the higher: transparent at 0 and below."""
    share = np.clip(anomaly_map / max(anomaly_map.max(), 1e-300), 0, 1)
    pixels = np.empty((*anomaly_map.shape, 4), np.uint8)
    pixels[..., :3], pixels[..., 3] = RED, np.rint(STRONGEST * share)
    return Image.fromarray(pixels)


def overlaid(image: np.ndarray, anomaly_map: np.ndarray, box: tuple) -> Image.Image:
    """An image (h, w, 3) of bytes, the map over the box that it is of, and the rest darkened.

    box: (left, top, right, bottom), as of `utils.images.boxes`.
    """
    left, top = round(box[0]), round(box[1])
    width, height = round(box[2] - box[0]), round(box[3] - box[1])
    dark = Image.fromarray(image // 2)
    part = Image.fromarray(image[top : top + height, left : left + width]).convert("RGBA")
    part.alpha_composite(heat(anomaly_map).resize(part.size, Image.Resampling.BICUBIC))
    dark.paste(part.convert("RGB"), (left, top))
    return dark

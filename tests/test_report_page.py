"""The report as a browser lays it out and answers to it."""

import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest

from tests.test_report import report
from transformations import Transformer
from utils.report import write_report

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
HOSTILE = "a very long name <script>throw 1</script><img src=http://localhost/x> " + "x" * 120

FRAMES = [(400, "light"), (400, "dark"), (1400, "light"), (1400, "dark")]

OUTER = """<!DOCTYPE html><meta charset="utf-8">%s<script>
const seen = [];
function inside(frame) {
  const page = frame.contentDocument, root = page.documentElement;
  const rows = (part) => [...page.querySelectorAll(part + ' > *')]
    .filter((each) => each.getBoundingClientRect().height)
    .map((each) => [each.getBoundingClientRect(), each])
    .sort(([a], [b]) => a.top - b.top || a.left - b.left)
    .map(([, each]) => each.title || each.lastElementChild.textContent);
  const both = () => [rows('.cards'), rows('tbody.sorted')];
  const visible = (part) => frame.contentWindow.getComputedStyle(page.querySelector(part));
  const found = {width: root.clientWidth, needed: root.scrollWidth, orders: {}};
  found.dark = visible('body').backgroundColor;
  for (const id of ['by-normality', 'by-name', 'by-anomaly', 'only']) {
    const input = page.getElementById(id);
    input.focus();
    found.outline = visible('#' + id).outlineStyle;
    input.click();
    found.orders[id] = both();
  }
  found.heat = [visible('img.heat').visibility];
  page.getElementById('heat').click();
  found.heat.push(visible('img.heat').visibility);
  found.blur = visible('.cards img').imageRendering;
  return found;
}
onload = () => {
  const all = [...document.querySelectorAll('iframe')].map(inside);
  document.documentElement.dataset.found = JSON.stringify(all);
};
</script>"""


def frame(page, width, scheme):
    style = f"border:0;width:{width}px;height:900px;color-scheme:{scheme}"
    return f'<iframe style="{style}" srcdoc="{html.escape(page)}"></iframe>'


def opened(path, text):
    """What the page's script found, and what the browser's console says."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed")
    path.write_text(text, encoding="utf-8")
    command = [browser, "--headless", "--no-sandbox", "--hide-scrollbars", "--dump-dom"]
    command += [f"--user-data-dir={path.parent / 'browser'}", "--enable-logging=stderr"]
    command += ["--virtual-time-budget=60000", "--window-size=1500,900", path.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r'<html[^>]* data-found="([^"]*)"', shown.stdout)
    return json.loads(html.unescape(found[1])), re.findall(r".*CONSOLE.*", shown.stderr)


@pytest.fixture
def page(tmp_path, monkeypatch):
    """A report with more images than fit its budget, their scores, and its text."""
    monkeypatch.setattr("utils.report.BUDGET", 3000)
    names = [f"{i:02}.png" for i in np.random.default_rng(0).permutation(60)]
    names[3] = HOSTILE.replace("/", "")
    transformations = Transformer(4, 4).transformations
    each = report(
        *(tmp_path, np.arange(60.0), 40.0),
        names=names,
        maps={0: np.eye(16)},
        transformations=transformations,
        responses=lambda chosen: np.full((len(chosen), 72, 72), 1 / 72),
        skipped=[(tmp_path / ("y" * 300), "no image")],
    )
    monkeypatch.setattr("utils.report.EXPLAINED", 10)
    write_report(tmp_path / "report.html", each)
    return (tmp_path / "report.html").read_text(encoding="utf-8"), each.table["path"]


def test_widths_colours_order_and_filter(page, tmp_path):
    text, paths = page
    frames = "".join(frame(text, *each) for each in FRAMES)
    all_found, console = opened(tmp_path / "outer.html", OUTER % frames)
    assert console == []  # neither errors nor refused requests
    for (width, scheme), found in zip(FRAMES, all_found, strict=True):
        assert found["width"] == found["needed"] == width
        assert found["dark"] == ("rgb(20, 25, 31)" if scheme == "dark" else "rgb(255, 255, 255)")
        check_orders(found["orders"], [str(path) for path in paths])
        assert found["outline"] != "none" and found["blur"] == "pixelated"
        assert found["heat"] == ["hidden", "visible"]


def check_orders(orders, paths):
    """paths: by score, the first 40 of them flagged."""
    cards, rows = orders["by-anomaly"]
    assert sorted(cards + rows) == sorted(paths) and len(cards) > 20 and len(rows) > 10
    for part, among in ((0, cards), (1, rows)):
        ranked = [path for path in paths if path in among]
        assert orders["by-anomaly"][part] == ranked
        assert orders["by-normality"][part] == ranked[::-1]
        assert orders["by-name"][part] == sorted(ranked)
        assert orders["only"][part] == [path for path in ranked if path in paths[:40]]


def test_the_console_is_heard(tmp_path):
    """What the test above relies on: errors and refused requests are found."""
    policy = '<meta http-equiv="Content-Security-Policy" content="img-src data:">'
    script = "<script>document.documentElement.dataset.found = '1'; throw Error('x')</script>"
    for text in (
        script,
        f"{script.replace(' throw Error', '//')}{policy}<img src='http://localhost/x'>",
    ):
        found, console = opened(tmp_path / "page.html", f"<!DOCTYPE html>{text}")
        assert found == 1 and len(console) == 1

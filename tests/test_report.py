import base64
import functools
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.stats import norm

from models.image_scorer import verdicts
from transformations import Rotations, SimpleTransformer, Transformer
from utils.images import read_image
from utils.report import THUMBNAIL, Report, histogram, mistakes, response_grid, write_report
from utils.threshold import anomaly_scores

HOSTILE = "\"'><script>alert(1)<img src=x onerror=alert(1)>\n\u202e&amp; $folder \x1b[31m"


class Page(HTMLParser):
    """The elements of a page, and its text."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag, kind=None):
        found = (attributes for each, attributes in self.elements if each == tag)
        return [a for a in found if kind is None or a.get("class") == kind]


def report(where, scores, threshold, names=None, **more):
    """A report on as many images, under the 8 simple transformations."""
    held_out = np.arange(20.0)
    paths = [where / name for name in names or (f"{i}.png" for i in range(len(scores)))]
    for path in paths:
        Image.new("RGB", (20, 20), "green").save(path, "PNG")
    responses = np.full((8, 8), 0.01) + np.eye(8) * 0.92
    values = {
        "folder": where,
        "table": verdicts(paths, np.array(scores, float), held_out, threshold),
        "images": np.zeros((len(scores), 16, 16, 3), np.uint8),
        "skipped": [],
        "held_out": anomaly_scores(held_out, held_out),
        "threshold": float(anomaly_scores(held_out, threshold)),
        "threshold_statement": "Threshold: 5 %",
        "read": functools.partial(read_image, enlarge=False),
        "transformations": SimpleTransformer().transformations,
        "responses": lambda chosen: np.repeat(responses[None], len(chosen), axis=0),
        "maps": {},
        "model": {"recipe": "fast"},
    }
    return Report(**values | more)


def written(folder, each):
    write_report(folder / "report.html", each)
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def test_the_report_says_what_could_be_confused(tmp_path):
    every = report(tmp_path, [1.0, 2.0], 1.5, model={"score": "dirichlet"})
    text = " ".join(written(tmp_path, every).text.split())
    assert "transformed in 8 ways" in text and "in another flip or rotation." in text
    assert "a flip is a guess" in text and "features" not in text
    turned = report(
        tmp_path,
        [1.0, 2.0],
        1.5,
        model={"score": "density"},
        transformations=Rotations().transformations,
        responses=lambda chosen: np.full((len(chosen), 4, 4), 0.25),
    )
    text = " ".join(written(tmp_path, turned).text.split())
    assert "transformed in 4 ways" in text and "in another rotation." in text
    assert "a guess" not in text and "can be low where nothing is confused" in text


def test_the_report_shows_all_and_explains_what_is_flagged(tmp_path):
    scores = np.random.default_rng(0).permutation(100).astype(float)
    page = written(tmp_path, report(tmp_path, scores, threshold=30.0))
    titles = [figure["title"] for figure in page.all("figure")]
    rank = [int(scores[int(Path(title).stem)]) for title in titles]
    # all, the highest again to compare, and all 30 that are flagged
    assert rank == [*range(100), 99, *range(30)]
    assert len(page.all("svg", "grid")) == 31
    assert "30flagged as anomalies, 30.0 %" in page.text.replace("\n", "")
    assert all(image["src"].startswith("data:image/webp;base64,") for image in page.all("img"))
    alts = [image["alt"] for image in page.all("img")][:100]
    assert alts == [f"{Path(each).name}, flagged" for each in titles[:30]] + [
        Path(each).name for each in titles[30:100]
    ]
    explained = {each["id"] for each in page.all("div", "why") if "id" in each}
    assert [each["href"] for each in page.all("a")] == [f"#why-{i}" for i in range(1, 31)]
    assert {each["href"][1:] for each in page.all("a")} == explained


def test_few_images_are_shown_once(tmp_path):
    page = written(tmp_path, report(tmp_path, [1.0, 2.0, 3.0], threshold=0.0))
    assert [Path(f["title"]).name for f in page.all("figure")] == [
        *("0.png", "1.png", "2.png"),
        "2.png",
    ]
    assert "No image is flagged" in page.text
    page = written(tmp_path, report(tmp_path, [1.0], threshold=2.0))
    assert len(page.all("svg", "grid")) == 2


def test_a_thousand_images_stay_under_5_megabytes(tmp_path):
    """Pictures that nothing compresses; those that do not fit are lines of a table."""
    noise = np.random.default_rng(0).integers(0, 256, (THUMBNAIL, THUMBNAIL, 3), np.uint8)
    scores = np.arange(1000.0)
    page = written(tmp_path, report(tmp_path, scores, 80.0, read=lambda *_: noise))
    assert (tmp_path / "report.html").stat().st_size < 5e6
    shown = [int(Path(figure["title"]).stem) for figure in page.all("figure")][:-61]
    n = len(shown) - 16
    assert shown == [*range(n), *range(984, 1000)] and n > 60
    listed = [each for each in page.all("tr") if "class" in each]
    assert len(listed) == 984 - n and f"{984 - n} more images" in page.text
    assert [each["class"] for each in listed].count("flagged") == max(80 - n, 0)
    assert page.text.count("983.png") == 1


def test_many_flagged_images_are_counted(tmp_path):
    page = written(tmp_path, report(tmp_path, np.arange(80.0), threshold=75.0))
    assert "15 more are flagged" in page.text


def test_nothing_is_loaded_and_no_name_becomes_markup(tmp_path):
    each = report(tmp_path, [1.0, 2.0, 30.0], threshold=1.5, folder=Path(HOSTILE))
    each.table.at[0, "path"] = each.table["path"][0].rename(tmp_path / HOSTILE)
    each.skipped.append((Path(HOSTILE), HOSTILE))
    each.model[HOSTILE] = HOSTILE
    page = written(tmp_path, each)
    assert not page.all("script") and not page.all("link") and not page.all("iframe")
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "srcset", "action", "data"):
            assert attributes.get(name, "data:").startswith(("data:", "#")), (tag, attributes)
    assert "url(" not in (tmp_path / "report.html").read_text()
    policy = page.all("meta")[1]["content"]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    # the names are there, as text, with what is invisible escaped
    shown = HOSTILE.replace("\n", "\\n").replace("\u202e", "\\u202e").replace("\x1b", "\\x1b")
    assert page.text.count(shown) == 2 + 2 + 2 + 2  # folder, cards, model, skipped file
    assert page.all("figure")[0]["title"].endswith(shown)


def test_thumbnails_are_read_as_the_report_says(tmp_path):
    def read(path, side):
        sides.append(side)
        return np.zeros((side, side, 3), np.uint8)

    sides = []
    written(tmp_path, report(tmp_path, [1.0, 2.0], threshold=0.0, read=read))
    assert set(sides) == {THUMBNAIL}


def test_a_report_that_cannot_be_written_leaves_the_older_one(tmp_path, monkeypatch):
    def fail(path, *_, **__):
        path.touch()
        raise OSError(28, "No space left on device")

    each = report(tmp_path, [1.0, 2.0], threshold=0.0)
    (tmp_path / "report.html").write_text("old")
    before = sorted(tmp_path.iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", fail)
        with pytest.raises(OSError, match=r"No space left on device.*report\.html"):
            write_report(tmp_path / "report.html", each)
    assert (tmp_path / "report.html").read_text() == "old"
    assert sorted(tmp_path.iterdir()) == before


def test_maps_lie_over_their_images_and_are_switched_on_without_a_script(tmp_path, monkeypatch):
    monkeypatch.chdir("/")  # the page's template is found from anywhere
    page = written(tmp_path, report(tmp_path, np.arange(9.0), 1.5, maps={0: np.eye(16)}))
    assert len(page.all("img", "heat")) == 2  # among the most anomalous, and where explained
    assert page.all("img", "heat")[0]["src"].startswith("data:image/webp;base64,")
    boxes = page.all("input")
    assert boxes[-1]["id"] == "heat" and boxes[-1]["type"] == "checkbox"
    assert [label["for"] for label in page.all("label")] == [box["id"] for box in boxes]
    assert not page.all("script")
    page = written(tmp_path, report(tmp_path, np.arange(9.0), 1.5))
    assert [box["id"] for box in page.all("input")] == [box["id"] for box in boxes[:-1]]


def test_numbers_that_say_something_come_first(tmp_path):
    """p-values and standard deviations; the raw score is where one points."""
    page = written(tmp_path, report(tmp_path, [-555582.0, 9.5], 1.0))
    deviation = 5 / norm.ppf(0.75)  # of 0 to 19, the median of |x - 9.5| is 5
    first = page.text[page.text.index("most anomalous first") :]
    assert f"p 0.048{(9.5 + 555582) / deviation:.1f} sd" in first.replace("\n", "")
    assert {"title": "raw score -555582"} in page.all("span")


def test_small_pictures_are_exact_and_enlarged_without_blur(tmp_path):
    """Of a file's own pixels: as many as it has, to THUMBNAIL."""
    each = report(tmp_path, [1.0, 2.0], threshold=0.0)
    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 256, (side, side + 9, 3), np.uint8) for side in (20, 300)]
    for path, image in zip(each.table["path"], pixels, strict=True):
        Image.fromarray(image).save(path)
    small, large, _ = written(tmp_path, each).all("img")
    assert small["class"] == "small" and "class" not in large
    found = np.asarray(picture(small))
    np.testing.assert_array_equal(found, read_image(each.table["path"][0], 20))
    assert picture(large).size == (THUMBNAIL, THUMBNAIL)


def picture(element):
    """What an img shows."""
    return Image.open(io.BytesIO(base64.b64decode(element["src"].partition(",")[2])))


def test_an_image_that_is_gone_is_shown_as_it_was_scored(tmp_path):
    each = report(tmp_path, [1.0, 2.0], threshold=0.0)
    each.table["path"][0].unlink()
    assert len(written(tmp_path, each).all("img")) == 3


@pytest.mark.parametrize(
    "scores, threshold",
    [
        ([1.0, 2.0, 3.0], 2.5),
        ([5.0], 5.0),
        ([5.0, 5.0], 9.0),
        ([-1e9, 1.0, 2.0], 0.0),
        ([1e-9, 2e-9], 1.5e-9),
        (list(range(1000)), 50.5),
        ([-3.0, -2.0], -1e6),
        ([-3.0, -2.0], 1e6),
    ],
)
def test_every_image_is_in_a_bar_of_its_colour(scores, threshold):
    page = Page(histogram(np.array(scores), np.array([1.0, 2.0, 4.0]), threshold))
    assert len(page.all("path", "held-out")) == 1
    titles = re.findall(r": (\d+) images", page.text)
    assert sum(map(int, titles)) == len(scores)
    flagged = sum(score < threshold for score in scores)
    assert bool(page.all("rect", "flagged")) == bool(flagged)
    assert bool(page.all("rect", "scored")) == (flagged < len(scores))
    for bar in page.all("rect"):
        assert -0.1 <= float(bar["x"]) <= 900 and float(bar["width"]) > 0
        assert -0.1 <= float(bar["y"]) <= 200 and float(bar["height"]) > 0


def test_mistakes_are_the_belief_in_other_parts():
    transformations = Transformer(8, 8).transformations
    rng = np.random.default_rng(0)
    responses = rng.dirichlet(np.ones(72), 72)
    expected = {"flip": 0.0, "shift": 0.0, "rotation": 0.0}
    for i, (flip, tx, ty, k) in enumerate(transformations):
        for j, other in enumerate(transformations):
            expected["flip"] += responses[i, j] * (flip != other[0]) / 72
            expected["shift"] += responses[i, j] * ((tx, ty) != other[1:3]) / 72
            expected["rotation"] += responses[i, j] * (k != other[3]) / 72
    assert mistakes(transformations, responses) == pytest.approx(expected)
    assert mistakes(SimpleTransformer().transformations, np.eye(8)) == {"flip": 0, "rotation": 0}


def test_the_grid_has_a_cell_for_each_transformation():
    transformations = Transformer(8, 8).transformations
    responses = np.eye(72)
    responses[5] = 0
    responses[5, 37] = 1.0
    grid = response_grid(transformations, responses)
    page = Page(grid)
    cells = [(int(cell["x"]), int(cell["y"])) for cell in page.all("rect")]
    assert len(set(cells)) == 72
    assert max(cells) == (8 * 14, 7 * 14)  # 9 shifts across, 8 flips and turns down
    colours = {cell["fill"] for cell in page.all("rect")}
    assert len(colours) == 2
    assert "shift 0, -8 and turn 90°: recognised with probability 0.00, taken for flip" in grid

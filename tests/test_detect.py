import argparse
import csv
import functools
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.stats import beta, binomtest
from sklearn.metrics import roc_auc_score

import detect
from models.image_scorer import ImageScorer
from models.recipes import RECIPES
from models.transformation_detector import TransformationDetector
from utils import startup
from utils.folders import Folder, arrivals, read_folder
from utils.images import MAX_PIXELS, ImageError, read_image, read_squares, to_grey
from utils.report import RED

ROOT = Path(__file__).resolve().parents[1]
HOSTILE = "=cmd|' \u202e\x1b[31m\n<b>.png"


def export(folder, images):
    folder.mkdir(parents=True)
    for i, image in enumerate(images):
        Image.fromarray(image[..., 0]).save(folder / f"{i:03}.png")


@pytest.fixture(scope="module")
def work(tmp_path_factory, digits):
    """Folders of digits and a model of fours, made by `fit`."""
    folder = tmp_path_factory.mktemp("detect")
    fours = digits.x_train[digits.y_train == 4]
    export(folder / "good", fours[:100])
    shutil.copy(folder / "good" / "000.png", folder / "good" / "copy.png")
    (folder / "good" / "empty.png").touch()
    export(folder / "mixed" / "fours", fours[100:110])
    export(
        folder / "mixed" / "noise", np.random.default_rng(0).integers(0, 256, (4, 16, 16, 1), "u1")
    )
    shutil.copy(folder / "mixed" / "noise" / "000.png", folder / "mixed" / HOSTILE)
    (folder / "mixed" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
    command = ["fit", str(folder / "good"), "--output", str(folder / "fours.keras")]
    command += ["--recipe", "small", "--epochs", "0.3", "--quiet"]
    assert detect.main(command) == 0
    return folder


@pytest.fixture(scope="module")
def detector(work):
    return TransformationDetector.load(work / "fours.keras")


def rows(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_fit_holds_out_images_and_leaves_copies_out(work, detector):
    assert detector.image_shape_ == (32, 32, 1)
    assert detector.details_["images"] == 80 and len(detector.calibration_scores_) == 20
    assert detector.false_alarm_rate_ == 0.05
    assert sorted(path.name for path in work.iterdir()) == ["fours.keras", "good", "mixed"]
    x = to_grey(read_folder(work / "good", 32, verbose=0).images[:100])
    held_out = np.sort(np.random.default_rng(0).permutation(100)[:20])
    expected = np.sort(detector.score_samples(x[held_out]))
    np.testing.assert_allclose(detector.calibration_scores_, expected, rtol=1e-6)
    others = np.delete(x, held_out, axis=0).astype(float)
    np.testing.assert_array_equal(detector.details_["mean_image"], np.rint(others.mean(axis=0)))


def test_score_writes_what_the_detector_says(work, detector, tmp_path, capsys):
    output, report = tmp_path / "scores.csv", tmp_path / "report.html"
    command = ["score", str(work / "mixed"), "--model", str(work / "fours.keras"), "--quiet"]
    assert detect.main([*command, "--output", str(output), "--report", str(report)]) == 0
    folder = read_folder(work / "mixed", 32, verbose=0)
    x = to_grey(folder.images)
    found = {row["path"]: row for row in rows(output)}
    assert found.keys() == set(map(str, folder.paths))
    for path, s, p, label in zip(
        folder.paths,
        detector.score_samples(x),
        detector.p_value(x),
        detector.predict(x),
        strict=True,
    ):
        row = found[str(path)]
        assert float(row["score"]) == pytest.approx(s, rel=1e-9)
        assert float(row["p_value"]) == p
        assert row["is_anomaly"] == str(label == -1)
        assert (row["is_anomaly"] == "True") == (p <= detector.false_alarm_rate_)
    ordered = [float(row["score"]) for row in rows(output)]
    assert ordered == sorted(ordered)
    assert list(rows(output)[0]) == ["path", "p_value", "anomaly_score", "is_anomaly", "score"]
    noise = [row for path, row in found.items() if "noise" in path]
    assert [row["is_anomaly"] for row in noise] == ["True"] * 4
    shown = capsys.readouterr()
    assert "1 skipped, 15 images read" in shown.err and "broken.jpg: " in shown.err
    assert "Traceback" not in shown.err
    assert f"{sum(row['is_anomaly'] == 'True' for row in found.values())} of 15 images" in shown.out
    assert "95 % interval: 0.1 to 16.8 %, by 20 held-out images" in shown.out
    assert "\x1b" not in shown.out and "\u202e" not in shown.out
    page = report.read_text(encoding="utf-8")
    assert "widen_factor=1" in page and "verbose" not in page
    assert "<b>.png" not in page and "&lt;b&gt;.png" in page


def test_paths_in_the_table_are_no_formulas_and_still_paths(work, tmp_path, monkeypatch):
    """Scored from within, where a path may start with anything."""
    folder = tmp_path / "=odd"
    folder.mkdir()
    names = [HOSTILE, "-1.png", "@a;=b,c.png", 'q"uote.png']
    for name in names:
        shutil.copy(work / "good" / "001.png", folder / name)
    monkeypatch.chdir(tmp_path)
    command = [
        "score",
        "=odd",
        "--model",
        str(work / "fours.keras"),
        "--quiet",
        "--output",
        "s.csv",
    ]
    assert detect.main(command) == 0
    paths = [row["path"] for row in rows("s.csv")]
    assert {Path(path) for path in paths} == {Path("=odd", name) for name in names}
    assert all(path.startswith("./=odd/") for path in paths)
    raw = Path("s.csv").read_text(encoding="utf-8")
    assert '"./=odd/@a;=b,c.png",' in raw and raw.startswith('"path","p_value"')


def test_exit_code_tells_of_anomalies_when_asked(work, detector, tmp_path):
    model = ["--model", str(work / "fours.keras"), "--quiet"]
    assert detect.main(["score", str(work / "mixed"), *model]) == 0
    assert detect.main(["score", str(work / "mixed" / "noise"), *model, "--exit-code"]) == 1
    good = read_folder(work / "good", 32, verbose=0)
    most_normal = good.paths[int(np.argmax(detector.score_samples(to_grey(good.images))))]
    (tmp_path / "one").mkdir()
    shutil.copy(most_normal, tmp_path / "one")
    assert detect.main(["score", str(tmp_path / "one"), *model, "--exit-code"]) == 0


def test_another_false_alarm_rate(work, detector, tmp_path):
    output = tmp_path / "s.csv"
    command = ["score", str(work / "good"), "--model", str(work / "fours.keras"), "--quiet"]
    command += ["--output", str(output), "--false-alarm-rate", "0.5"]
    assert detect.main(command) == 0
    threshold = detector.calibration_scores_[9]  # of 20, floor(0.5 * 21) = 10 are at most it
    for row in rows(output):
        assert (row["is_anomaly"] == "True") == (float(row["score"]) < threshold)


def test_one_image_several_folders_and_lists(work, detector, tmp_path, monkeypatch, capsys):
    """As many ways to name images, with JSON on standard output and all else beside it."""
    one, noise = work / "mixed" / "fours" / "000.png", work / "mixed" / "noise"
    model = ["--model", str(work / "fours.keras"), "--quiet", "--json"]

    def score(*arguments):
        assert detect.main(["score", *map(str, arguments), *model]) == 0
        return json.loads(capsys.readouterr().out)

    found = score(one)
    (row,) = found["images"]
    x = to_grey(read_image(one, 32)[None])
    assert row["path"] == str(one) and row["score"] == pytest.approx(detector.score_samples(x)[0])
    assert row["p_value"] == detector.p_value(x)[0]
    assert row["is_anomaly"] == (detector.predict(x)[0] == -1)
    median = np.median(detector.calibration_scores_)
    assert np.sign(row["anomaly_score"]) == np.sign(median - row["score"])
    assert found["threshold"] == detector.offset_ and found["held_out"] == 20
    both = score(noise, one, one, noise / "001.png")["images"]
    assert {each["path"] for each in both} == {str(one), *map(str, noise.iterdir())}
    assert len(both) == 5 and both[-1]["path"] == str(one)
    # a list may name what is gone, and has any line ends
    listed = tmp_path / "list.txt"
    listed.write_bytes(f"{one}\r\n\n{noise}\n{tmp_path / 'gone.png'}\n".encode())
    found = score("--files", listed)
    assert sorted(each["path"] for each in found["images"]) == sorted(e["path"] for e in both)
    assert [each["path"] for each in found["skipped"]] == [str(tmp_path / "gone.png")]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(os.fsencode(one))))
    assert [each["path"] for each in score("--files", "-")["images"]] == [str(one)]


def test_one_image_gets_an_answer(work, capsys):
    command = ["score", str(work / "mixed" / "noise" / "000.png"), "--quiet", "--exit-code"]
    assert detect.main([*command, "--model", str(work / "fours.keras")]) == 1
    shown = capsys.readouterr().out
    assert re.search(r"0\.0476 .* anomaly .* \S+000\.png", shown)
    assert "1 of 1 images are flagged; 0.05 would be" in shown


def test_arriving_images_are_lines_of_json(work, detector, tmp_path, monkeypatch, capsys):
    """Two files are dropped in while the folder is watched, one of them no image."""

    def drop(seconds):
        turns.append(seconds)
        if len(turns) == 2:
            shutil.copy(work / "mixed" / "noise" / "000.png", tmp_path)
            (tmp_path / "b.png").write_text("no image")
        if len(turns) == 5:
            raise KeyboardInterrupt

    turns = []
    monkeypatch.setattr(detect, "arrivals", functools.partial(arrivals, wait=drop))
    command = ["score", "--watch", str(tmp_path), "--model", str(work / "fours.keras")]
    assert detect.main(command) == 130
    image, broken = map(json.loads, capsys.readouterr().out.splitlines())
    assert image["path"] == str(tmp_path / "000.png") and image["is_anomaly"]
    assert image["p_value"] == 1 / 21
    b = tmp_path / "b.png"
    assert broken == {"path": str(b), "error": f"{b}: no image format that Pillow knows"}


def tile_model(work, path, region, tiles=3):
    """The module's model as if it was trained on another region."""
    detector = TransformationDetector.load(work / "fours.keras")
    detector.details_ |= {"region": region, "tiles": tiles}
    detector.save(path)


def test_a_defect_at_the_end_of_a_wide_image_is_seen_in_tiles(
    work, detector, tmp_path, capsys, monkeypatch
):
    """A four, then what is no four, in one image of 16x32 pixels."""
    fours = [np.asarray(Image.open(p)) for p in sorted((work / "good").glob("0*.png"))]
    x = to_grey(read_folder(work / "good", 32, verbose=0).images[: len(fours)])
    four = fours[int(np.argmax(detector.score_samples(x)))]
    noise = np.random.default_rng(0).integers(0, 256, (16, 16), np.uint8)
    Image.fromarray(np.hstack([four, noise])).save(tmp_path / "wide.png")
    expected = to_grey(read_squares(tmp_path / "wide.png", 32, region="tiles")[0])
    assert len(expected) == 3
    tile_model(work, tmp_path / "m.keras", "tiles")
    command = ["score", str(tmp_path / "wide.png"), "--quiet", "--json", "--report"]
    command += [str(tmp_path / "r.html"), "--model", str(tmp_path / "m.keras")]
    reports = []
    monkeypatch.setattr(detect, "write_report", lambda path, report: reports.append(report))
    assert detect.main([*command[:2], "--maps", str(tmp_path / "maps"), *command[2:]]) == 0
    shown = capsys.readouterr()
    lowest = int(np.argmin(detector.score_samples(expected)))
    (image,) = reports[0].images
    np.testing.assert_array_equal(image, expected[lowest].repeat(3, axis=-1))
    again = to_grey(reports[0].read(tmp_path / "wide.png", 32)[None])[0]
    small = to_grey(read_squares(tmp_path / "wide.png", 32, region="tiles", enlarge=False)[0])
    np.testing.assert_array_equal(again, small[lowest])
    (drawn,) = (tmp_path / "maps").iterdir()
    left = np.asarray(Image.open(drawn))[:, :8]
    assert lowest > 0  # so that the left is not what was scored, and is darkened
    np.testing.assert_array_equal(left, four[:, :8, None].repeat(3, axis=-1) // 2)
    (row,) = json.loads(shown.out)["images"]
    assert row["score"] == pytest.approx(detector.score_samples(expected).min(), rel=1e-9)
    assert row["is_anomaly"] and not json.loads(shown.out)["remarks"]
    command[-1] = str(work / "fours.keras")
    assert detect.main(command) == 0
    (remark,) = json.loads(capsys.readouterr().out)["remarks"]
    assert "warning" in remark and "50% of the pixels lie outside" in remark
    tile_model(work, tmp_path / "m.keras", "corner")
    assert detect.main([*command[:-1], str(tmp_path / "m.keras")]) == 2
    assert "says that the region is 'corner'" in capsys.readouterr().err


def test_more_tiles_than_in_training_are_warned_of(work, tmp_path, capsys):
    tile_model(work, tmp_path / "m.keras", "tiles", 2)
    for i, width in enumerate((16, 28, 30)):  # 1, 2, 3 tiles
        Image.new("L", (width, 16)).save(tmp_path / f"{i}.png")
    command = ["score", str(tmp_path), "--quiet", "--json", "--model", str(tmp_path / "m.keras")]
    assert detect.main(command) == 0
    (remark,) = json.loads(capsys.readouterr().out)["remarks"]
    assert "1 images have more tiles than any that fit saw" in remark
    tile_model(work, tmp_path / "m.keras", "tiles", 3)
    assert detect.main(command) == 0
    assert not json.loads(capsys.readouterr().out)["remarks"]
    tile_model(work, tmp_path / "m.keras", "tiles", "many")
    assert detect.main(command) == 2
    assert "says that an image has 'many' tiles" in capsys.readouterr().err


def test_colours_that_a_grey_model_cannot_see_are_told(work, tmp_path, capsys):
    Image.new("RGB", (16, 16), "red").save(tmp_path / "red.png")
    command = ["score", str(tmp_path), "--quiet", "--json", "--model", str(work / "fours.keras")]
    assert detect.main(command) == 0
    (remark,) = json.loads(capsys.readouterr().out)["remarks"]
    assert "colours are not looked at" in remark


def test_tiles_of_an_image_are_held_out_together(work, tmp_path, monkeypatch):
    """fit on wide images: a threshold from as many scores as images are held out."""
    seen = []

    def fit(self, x, **_):
        seen.append(x)
        return trained_already(work)(self, x)

    monkeypatch.setattr(TransformationDetector, "fit", fit)
    images = np.random.default_rng(0).integers(0, 256, (100, 16, 28), dtype=np.uint8)
    (tmp_path / "good").mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "good" / f"{i:03}.png")
    command = ["fit", str(tmp_path / "good"), "--output", str(tmp_path / "m.keras"), "--quiet"]
    assert detect.main([*command, "--region", "tiles", "--recipe", "small"]) == 0
    made = TransformationDetector.load(tmp_path / "m.keras")
    assert len(seen[0]) == 80 * 2 and len(made.calibration_scores_) == 20
    assert made.details_["region"] == "tiles" and made.details_["tiles"] == 2
    held_out = np.sort(np.random.default_rng(0).permutation(100)[:20])
    paths = [tmp_path / "good" / f"{i:03}.png" for i in held_out]
    squares = [to_grey(read_squares(path, 32, region="tiles")[0]) for path in paths]
    expected = np.sort([made.score_samples(each).min() for each in squares])
    np.testing.assert_allclose(made.calibration_scores_, expected, rtol=1e-6)


def test_fit_says_what_to_expect(work, detector, capsys):
    """Of noise, no turn is recognised; of fours, some are."""
    fours = to_grey(read_folder(work / "mixed" / "fours", 32, verbose=0).images)
    text = "\n".join(detect.findings(detector, fours))
    counts = [int(n) for n in re.findall(r"^ *(?:under|\S+ to|5 or)[^#]*? (\d+) #*$", text, re.M)]
    assert len(counts) == 8 and sum(counts) == 20
    assert "how they were turned is recognised in" in text and "(25% by chance)" in text
    noise = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 1), np.uint8)
    assert "hardly better than by chance" in detect.findings(detector, noise)[-1]


def test_images_that_are_all_alike_are_warned_of(work, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(TransformationDetector, "fit", trained_already(work))
    (tmp_path / "good").mkdir()
    for i in range(100):
        pixels = np.zeros((16, 16), np.uint8)
        pixels[divmod(i, 16)] = 4
        Image.fromarray(pixels).save(tmp_path / "good" / f"{i}.png")
    command = ["fit", str(tmp_path / "good"), "--output", str(tmp_path / "m.keras"), "--quiet"]
    assert detect.main([*command, "--recipe", "small"]) == 0
    assert "warning: the images are nearly all alike" in capsys.readouterr().out
    command[1] = str(work / "good")
    assert detect.main([*command, "--recipe", "small"]) == 0
    assert "nearly all alike" not in capsys.readouterr().out


def test_the_demo_shows_all_of_it(work, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(TransformationDetector, "fit", trained_already(work))
    assert detect.main(["demo", str(tmp_path / "demo")]) == 0
    shown = capsys.readouterr().out
    for name in ("fit", "score", "evaluate"):
        assert f"$ python detect.py {name}" in shown
    assert (tmp_path / "demo" / "report.html").is_file() and "report.html" in shown.splitlines()[-1]
    assert len(rows(tmp_path / "demo" / "scores.csv")) == 41
    assert detect.main(["demo", str(tmp_path / "demo")]) == 2
    assert "is there already" in capsys.readouterr().err


def test_evaluate_measures_what_scikit_learn_does(work, detector, capsys):
    command = ["evaluate", "--normal", str(work / "mixed" / "fours"), "--quiet"]
    command += ["--anomalous", str(work / "mixed" / "noise"), "--model", str(work / "fours.keras")]
    assert detect.main(command) == 0
    scores = [
        detector.score_samples(to_grey(read_folder(work / "mixed" / name, 32, verbose=0).images))
        for name in ("fours", "noise")
    ]
    auroc = roc_auc_score([True] * 10 + [False] * 4, np.concatenate(scores))
    shown = capsys.readouterr().out
    assert f"{100 * auroc:6.2f} %" in shown.splitlines()[2]
    interval = binomtest(int((scores[1] < detector.offset_).sum()), 4).proportion_ci(0.95, "exact")
    assert f"{100 * interval.low:.1f} to {100 * interval.high:.1f} %" in shown
    assert detect.main([*command, "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["auroc"] == pytest.approx(auroc)
    assert (values["normal"], values["anomalous"]) == (10, 4)
    for kind, each in zip(("normal images", "anomalies"), scores, strict=True):
        flagged = values[f"{kind} flagged"]
        assert flagged["percent"] == pytest.approx(100 * (each < detector.offset_).mean())


@pytest.mark.parametrize("count, n", [(0, 7), (3, 7), (7, 7), (28, 1000)])
def test_shares_have_clopper_and_pearsons_interval(count, n):
    share, low, high = detect.share_interval(count, n)
    lowest = beta.ppf(0.025, count, n - count + 1) if count else 0.0
    highest = beta.ppf(0.975, count + 1, n - count) if count < n else 1.0
    assert share == pytest.approx(100 * count / n)
    assert (low, high) == pytest.approx((100 * lowest, 100 * highest))


def test_colour_images_give_a_colour_model(tmp_path, monkeypatch):
    """fit, with training and scoring left out."""
    monkeypatch.setattr(TransformationDetector, "fit", lambda self, x, **_: seen.append(x))
    seen = []
    images = np.random.default_rng(0).integers(0, 256, (100, 40, 50, 3), dtype=np.uint8)
    (tmp_path / "good").mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "good" / f"{i}.bmp")
    command = ["fit", str(tmp_path / "good"), "--output", str(tmp_path / "m.keras"), "--size", "64"]
    assert detect.main([*command, "--quiet"]) == 2  # not trained: nothing to calibrate
    assert seen[0].shape == (80, 64, 64, 3) and seen[0].dtype == np.uint8


def test_a_colour_model_scores_the_colours_of_files(tmp_path, monkeypatch, small_network, capsys):
    x = np.random.default_rng(0).integers(0, 256, (45, 32, 32, 3), dtype=np.uint8)
    detector = TransformationDetector("rotations", samples=128, verbose=0).fit(x[:20])
    detector.calibrate(x[20:40])
    monkeypatch.setattr(TransformationDetector, "load", lambda _: detector)
    paths = [tmp_path / f"{i}.png" for i in range(5)]
    for path, image in zip(paths, x[40:], strict=True):
        Image.fromarray(image).save(path)
    command = ["score", str(tmp_path), "--model", "m.keras", "--json", "--quiet"]
    assert detect.main(command) == 0
    found = {row["path"]: row["score"] for row in json.loads(capsys.readouterr().out)["images"]}
    expected = dict(zip(map(str, paths), detector.score_samples(x[40:]), strict=True))
    assert found == pytest.approx(expected, rel=1e-4)
    assert np.ptp(list(expected.values())) > 1e-2 * abs(detector.offset_)


def test_maps_lie_over_their_own_images_and_never_among_older_ones(work, tmp_path, capsys):
    maps, table = tmp_path / "maps", tmp_path / "s.csv"
    command = ["score", str(work / "mixed"), "--model", str(work / "fours.keras"), "--quiet"]
    command += ["--maps", str(maps)]
    assert detect.main([*command, "--output", str(table)]) == 0
    ranked = [Path(row["path"].removeprefix("./")) for row in rows(table)]
    pictures = sorted(maps.iterdir())
    assert [path.name[:5] for path in pictures] == [f"{i + 1:04}_" for i in range(len(ranked))]
    for path, source in zip(pictures, ranked, strict=True):
        assert path.name[5:] == f"{source.stem}.png"
        green, shown = read_image(source, None)[..., 1], np.asarray(Image.open(path))
        assert shown.shape[:2] == green.shape
        assert (shown[..., 1] <= np.maximum(green, RED[1]) + 1.0).all()
        assert (shown[..., 0] > shown[..., 1]).any()  # red somewhere
    capsys.readouterr()
    assert detect.main(command) == 2
    assert "holds maps already: empty it, or name another folder" in capsys.readouterr().err


def test_an_image_of_another_shape_than_it_had_is_listed_too(work, tmp_path):
    tile_model(work, tmp_path / "m.keras", "tiles")
    Image.fromarray(np.arange(16 * 28, dtype=np.uint8).reshape(16, 28)).save(tmp_path / "a.png")
    scorer = ImageScorer(tmp_path / "m.keras", None, MAX_PIXELS, verbose=False)
    scored = scorer.score(scorer.read([tmp_path / "a.png"]))
    scored.shown[:] = 1  # the last of two tiles
    (tmp_path / "maps").mkdir()
    maps = scored.maps(1)
    Image.new("L", (16, 16)).save(tmp_path / "a.png")
    scored.write_maps(tmp_path / "maps", maps)
    (remark,) = scored.folder.remarks
    assert remark.startswith("no map of") and "another shape than when" in remark
    assert not list((tmp_path / "maps").iterdir())
    with pytest.raises(ImageError, match="another shape than when it was first read"):
        scored.report(maps).read(tmp_path / "a.png", 32)


def test_an_image_that_is_gone_before_its_map_is_drawn_is_listed(work, tmp_path):
    shutil.copytree(work / "mixed" / "fours", tmp_path / "new")
    scorer = ImageScorer(work / "fours.keras", None, MAX_PIXELS, verbose=False)
    scored = scorer.score(scorer.read([tmp_path / "new"]))
    first, second = scored.folder.paths[scored.table.index[0]], scored.table.index[1]
    first.unlink()
    (tmp_path / "maps").mkdir()
    scored.write_maps(tmp_path / "maps", scored.maps(2))
    (written,) = (tmp_path / "maps").iterdir()
    assert written.name == f"0002_{scored.folder.paths[second].stem}.png"
    (remark,) = scored.folder.remarks
    assert remark.startswith(f"no map of {first}: ") and not scored.folder.skipped


def test_a_model_without_a_mean_image_makes_no_maps(work, tmp_path, monkeypatch, capsys):
    detector = TransformationDetector.load(work / "fours.keras")
    del detector.details_["mean_image"]
    detector.save(tmp_path / "old.keras")
    command = ["score", str(work / "mixed"), "--model", str(tmp_path / "old.keras")]
    assert detect.main([*command, "--maps", str(tmp_path / "maps")]) == 2
    assert "this model is of an older version, and has no maps" in capsys.readouterr().err
    assert not (tmp_path / "maps").exists()


@pytest.mark.parametrize("minutes", [[], ["--minutes", "4"]])
@pytest.mark.parametrize("epochs", [[], ["--epochs", "1"]])
def test_what_fit_asks_of_the_training(work, tmp_path, monkeypatch, minutes, epochs):
    """That it ends early or in time, and goes on where it was stopped."""
    asked = []

    def fit(self, x, **how):
        asked.append((self.get_params(), x, how))
        return trained_already(work)(self, x)

    monkeypatch.setattr(TransformationDetector, "fit", fit)
    command = ["fit", str(work / "good"), "--output", str(tmp_path / "m.keras"), "--quiet"]
    command += ["--recipe", "small", "--score", "simplified", "--seed", "3", *minutes, *epochs]
    assert detect.main(command) == 0
    ((settings, x, how),) = asked
    assert settings["epochs"] == (1 if epochs else RECIPES["small"]["epochs"])
    assert settings["schedule"] == ("one_cycle" if epochs and not minutes else "paced")
    assert (settings["score_name"], settings["seed"]) == ("simplified", 3)
    (pace,) = how["callbacks"]
    assert pace.minutes == (4 if minutes else None)
    images = {image.tobytes() for image in x}
    assert (len(images), len(pace.held_out)) == (80, 20)
    assert not images & {image.tobytes() for image in pace.held_out}
    assert how["checkpoint"] == tmp_path / ".m.checkpoint.keras"


@pytest.mark.parametrize(
    "command, message",
    [
        ("fit none --output m.keras", "none is no folder"),
        ("fit empty --output m.keras", "empty holds no readable image"),
        ("fit good --output m.h5", "m.h5 must end in .keras"),
        ("fit good --output no/m.keras", "no is no folder; make it"),
        ("fit few --output m.keras", r"20 different images, of which 4 are held out.*at least 93"),
        ("fit good --output m.keras --false-alarm-rate 0.01", "needs 99 of them"),
        ("score good --model none.keras", "none.keras"),
        ("score good --model empty/notes.keras", "notes.keras is not a saved detector"),
        ("score good --model notes.txt", "must end in .keras"),
        ("score good --model fours.keras --output s.txt", "must end in .csv"),
        ("score good --model fours.keras --report r.pdf", "must end in .html"),
        ("score good --model fours.keras --output s.csv --report no/r.html", "no is no folder"),
        ("score good --model fours.keras --output folder.csv", "folder.csv is there and is no fi"),
        ("fit good --output folder.keras", "folder.keras is there and is no file"),
        ("score good --model white.keras", "white.keras says that white is 'much'"),
        ("score good --model fours.keras --max-pixels 255", "more than 255 pixels.*--max-pixels"),
        ("score good --model fours.keras --false-alarm-rate 0.01", "at least 99 held-out"),
        ("score good --model plain.keras", "no threshold yet"),
        ("score none.png --model fours.keras", "none.png is no folder and no file"),
        ("score --model fours.keras", "give images or folders, or --files LIST, or --watch"),
        ("score good --watch good --model fours.keras", "one of these"),
        ("score --watch none --model fours.keras", "none is no folder"),
        ("score --watch good --output s.csv --model fours.keras", "--watch goes without"),
        ("score --files none.txt --model fours.keras", "none.txt"),
        ("evaluate --normal good --anomalous empty --model fours.keras", "no readable image"),
    ],
)
def test_errors_are_one_line_and_status_2(
    work, detector, tmp_path, monkeypatch, capsys, command, message
):
    monkeypatch.chdir(tmp_path)
    for name in ("good", "fours.keras"):
        Path(name).symlink_to(work / name)
    Path("empty").mkdir()
    Path("empty/notes.keras").write_text("no image")
    Path("few").mkdir()
    for path in sorted((work / "good").iterdir())[:20]:
        shutil.copy(path, "few")
    for name in ("folder.csv", "folder.keras"):
        Path(name).mkdir()
    if "plain" in command:
        plain = TransformationDetector.load(work / "fours.keras")
        del plain.calibration_scores_
        plain.save("plain.keras")
    if "white" in command:
        detector = TransformationDetector.load(work / "fours.keras")
        detector.details_["white"] = "much"
        detector.save("white.keras")
    assert detect.main([*command.split(), "--quiet"]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("error: ") and "Traceback" not in shown.err
    assert re.search(message, shown.err)


@pytest.mark.parametrize(
    "command, message",
    [
        ("fit", "required: GOOD_IMAGES, --output"),
        ("sc", "invalid choice: 'sc'"),
        ("", "required: fit | score | evaluate"),
        ("fit a --output m.keras --false-alarm-rate 5", "--false-alarm-rate: '5' is no number be"),
        ("fit a --output m.keras --epochs abc", "--epochs: 'abc' is no number above 0"),
        ("fit a --output m.keras --held-out 20%", "--held-out: '20%' is no number between 0 and"),
        ("fit a --output m.keras --seed -1", "--seed: '-1' is no whole number from 0 to"),
        ("score a --model m.keras --max-pixels 2e8", "--max-pixels: '2e8' is no whole number"),
    ],
)
def test_wrong_usage_is_status_2(command, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        detect.main(command.split())
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_a_failed_write_leaves_the_older_table(work, tmp_path, monkeypatch, capsys):
    def fail(*_, **__):
        raise OSError(28, "a long story\n of HDF5's")

    output, report = tmp_path / "s.csv", tmp_path / "r.html"
    command = ["score", str(work / "mixed"), "--model", str(work / "fours.keras"), "--quiet"]
    command += ["--output", str(output), "--report", str(report)]
    for path, name in ((output, "pandas.DataFrame.to_csv"), (report, "detect.write_report")):
        output.write_text("old")
        report.write_text("old")
        with monkeypatch.context() as patch:
            patch.setattr(name, fail)
            assert detect.main(command) == 2
        assert path.read_text() == "old"
        assert sorted(each.name for each in tmp_path.iterdir()) == ["r.html", "s.csv"]
    assert f"error: [Errno 28] No space left on device: {str(output)!r}" in capsys.readouterr().err


def deep_copy(images, folder, shift):
    """The images as 16-bit files of 8 + shift bits, the lower ones 0."""
    folder.mkdir()
    for path in images.glob("0*.png"):
        pixels = np.asarray(Image.open(path)).astype(np.uint16) << shift
        Image.fromarray(pixels).save(folder / path.name)


def test_what_is_white_is_kept_in_the_model(work, tmp_path, monkeypatch, capsys):
    """fit on files of 12 bits; then one of them alone, too dark to tell by itself, and 16 bits."""
    monkeypatch.setattr(TransformationDetector, "fit", trained_already(work))
    deep_copy(work / "good", tmp_path / "good", 4)
    model = ["--model", str(tmp_path / "m.keras"), "--quiet", "--output", str(tmp_path / "s.csv")]
    fit = ["fit", str(tmp_path / "good"), "--output", str(tmp_path / "m.keras"), "--quiet"]
    assert detect.main([*fit, "--recipe", "small"]) == 0
    assert "in images of more than 8 bits, 4095 is white\n" in capsys.readouterr().out
    assert TransformationDetector.load(tmp_path / "m.keras").details_["white"] == 4095
    (tmp_path / "dark").mkdir()
    for name, value in (("12", 1000), ("8", round(1000 * 255 / 4095))):
        pixels = np.full((16, 16), value, np.uint16 if name == "12" else np.uint8)
        Image.fromarray(pixels).save(tmp_path / "dark" / f"{name}.png")
    assert detect.main(["score", str(tmp_path / "dark"), *model]) == 0
    assert "4095 is white\n" in capsys.readouterr().out
    first, second = (row["score"] for row in rows(tmp_path / "s.csv"))
    assert first == second
    # the report's larger pictures, too
    with monkeypatch.context() as patch:
        reports = []
        patch.setattr(detect, "write_report", lambda path, report: reports.append(report))
        command = ["score", str(tmp_path / "dark"), *model, "--report", str(tmp_path / "r.html")]
        assert detect.main([*command, "--max-pixels", "256"]) == 0
        read = reports[0].read
    assert (read(tmp_path / "dark" / "12.png", 64) == round(1000 * 255 / 4095)).all()
    Image.new("L", (17, 17)).save(tmp_path / "large.png")
    with pytest.raises(ImageError, match="more than 256 pixels"):
        read(tmp_path / "large.png", 64)
    capsys.readouterr()
    deep_copy(work / "good", tmp_path / "bright", 8)
    assert detect.main(["score", str(tmp_path / "bright"), *model]) == 0
    assert "4095 is white; 100 of them have pixels above it" in capsys.readouterr().out
    # a model that saw no such image, or is older, takes all 16 bits
    model[1] = str(work / "fours.keras")
    assert detect.main(["score", str(tmp_path / "dark"), *model]) == 0
    assert "65535 is white" in capsys.readouterr().out


def trained_already(work):
    """A `fit` that takes the weights of the module's model instead of training."""

    def fit(self, x, **_):
        self.__dict__.update(TransformationDetector.load(work / "fours.keras").__dict__)
        return self

    return fit


def test_names_that_an_encoding_lacks_and_a_quiet_start(work, tmp_path):
    """As a program, to a terminal that knows no letters but English ones."""
    folder = tmp_path / "größe 猫"
    shutil.copytree(work / "mixed", folder)
    command = [sys.executable, ROOT / "detect.py", "score", folder, "--quiet"]
    command += ["--model", work / "fours.keras", "--output", tmp_path / "größe.csv"]
    environment = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
    environment |= {"PYTHONIOENCODING": "ascii", "PYTHONWARNINGS": "ignore"}
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert shown.returncode == 0
    assert "gr\\xf6\\xdfe \\u732b" in shown.stdout and "gr\\xf6\\xdfe.csv" in shown.stdout
    assert {Path(row["path"]).parent for row in rows(tmp_path / "größe.csv")} >= {folder / "fours"}
    if not startup._has_gpu():
        assert [line.split()[0] for line in shown.stderr.splitlines()] == ["skipped", "1"]


def test_interruption_is_status_130(work, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("models.image_scorer.read_folder", stop)
    command = ["score", str(work / "good"), "--model", str(work / "fours.keras")]
    assert detect.main(command) == 130


def test_help_shows_how(tmp_path):
    """As a program, from another folder."""
    shown = subprocess.run(
        [sys.executable, ROOT / "detect.py", "--help"], cwd=tmp_path, capture_output=True, text=True
    )
    assert shown.returncode == 0
    for command in ("fit GOOD_IMAGES/", "score IMAGES/", "evaluate --normal"):
        assert f"python detect.py {command}" in shown.stdout


def test_the_share_held_out_and_the_rate_are_those_that_are_given(
    work, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(TransformationDetector, "fit", trained_already(work))
    model = str(tmp_path / "m.keras")
    command = ["fit", str(work / "good"), "--output", model, "--quiet", "--recipe", "small"]
    assert detect.main([*command, "--held-out", "0.4", "--false-alarm-rate", "0.2"]) == 0
    scores = TransformationDetector.load(model).calibration_scores_
    for given, rate in (([], 0.2), (["--false-alarm-rate", "0.1"], 0.1)):
        capsys.readouterr()
        command = ["score", str(work / "mixed"), "--model", model, "--json", "--quiet", *given]
        assert detect.main(command) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["held_out"], found["false_alarm_rate"]) == (40, rate)
        assert found["threshold"] == scores[math.floor(rate * 41) - 1]


@pytest.mark.parametrize("share, rate", [(0.2, 0.05), (0.99, 0.05), (0.7, 0.3), (1e-9, 0.05)])
def test_as_many_images_as_are_asked_for_are_enough(share, rate, tmp_path):
    def divided(n):
        x = np.arange(n, dtype=np.uint8)[:, None, None, None].repeat(3, axis=-1)
        paths = [Path(str(i)) for i in range(n)]
        folder = Folder(paths, x, np.arange(n), [], None, 0, "", [])
        return detect.divided(folder, argparse.Namespace(**options))

    options = {"held_out": share, "false_alarm_rate": rate, "seed": 0}
    with pytest.raises(ValueError, match="Give at least") as raised:
        divided(3)
    enough = int(re.search(r"Give at least (\d+) images", str(raised.value))[1])
    if share < 1e-3:  # half an image more than 18 of 10^9
        assert 18.5e9 <= enough < 18.5e9 + 10
        return
    held_out, training = divided(enough)
    assert len(held_out.paths) == round(share * enough) and training.paths
    with pytest.raises(ValueError, match=f"Give at least {enough} images"):
        divided(enough - 1)


def test_larger_images_are_skipped_by_fit_too(work, tmp_path, capsys):
    command = ["fit", str(work / "good"), "--output", str(tmp_path / "m.keras")]
    assert detect.main([*command, "--max-pixels", "255"]) == 2
    assert "more than 255 pixels" in capsys.readouterr().err

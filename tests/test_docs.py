import importlib
import operator
import re
import runpy
import shutil
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from sklearn.metrics import roc_auc_score

import baselines
import docs.results
import experiments
import models.transformation_detector
import multiclass_experiment
from models.recipes import RECIPES
from tests.conftest import create_small_network
from utils.datasets import LAYOUTS, Layout
from utils.results import read_details, read_runs, summarise, to_markdown

ROOT = Path(__file__).resolve().parents[1]
TEXTS = ("README.md", "RESULTS.md", "docs/recipes.md")
EXTENDING = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")


@pytest.fixture
def in_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("name", TEXTS)
def test_what_is_said_of_measurements_is_what_the_run_files_give(name, in_root):
    text = Path(name).read_text(encoding="utf-8")
    assert docs.results.fill(text) == text, "python -m docs.results writes it anew"


@pytest.mark.parametrize("name", TEXTS)
def test_what_stands_between_markers_is_written_anew(name, in_root):
    text = Path(name).read_text(encoding="utf-8")
    marked = re.compile(r"(<!-- \w[^>]* -->).*?(<!-- / -->)", re.DOTALL)
    assert marked.search(text)
    assert text.count("<!--") == 2 * len(marked.findall(text))
    assert docs.results.fill(marked.sub(r"\1 another \2", text)) == text


def test_every_table_of_results_comes_from_run_files():
    text = (ROOT / "RESULTS.md").read_text(encoding="utf-8")
    by_hand = re.sub(r"<!-- \w[^>]* -->.*?<!-- / -->", "", text, flags=re.DOTALL)
    assert "\n|" in text and "\n|" not in by_hand


def test_table_1_has_what_was_measured_and_what_was_published():
    text = (ROOT / "RESULTS.md").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("|")]
    header, _, airplane, automobile, *rest = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in lines
    ]
    with np.load(ROOT / "results" / "cifar10" / "cifar10_transformations_1_0.npz") as run:
        measured = 100 * roc_auc_score(run["normal"], run["scores_dirichlet"])
    papers_order = "raw_ocsvm cae_ocsvm deep_svdd dagmm dsebm adgan transformations"
    assert header[2:9] == papers_order.split()
    assert automobile[1] == "automobile" and airplane[:2] == ["cifar10", "airplane"]
    assert automobile[8] == f"{measured:.1f} <sub>95.7</sub>"
    assert automobile[header.index("transformations *fast*")] == "96.1"  # a column of its own
    assert "<sub>57.1</sub>" in automobile[5]
    start = next(i for i, row in enumerate(rest) if row[0] == "fashion_mnist")
    *classes, mean = [row[8] for row in rest[start : start + 11]]
    found = [re.findall(r"[\d.]+", cell.replace("±", "")) for cell in classes if cell[0] != "<"]
    measured, published = (np.mean([float(each[i]) for each in found]) for i in (0, -1))
    numbers = re.match(r"([\d.]+) <sub>([\d.]+)</sub>(.*)", mean)
    assert float(numbers[1]) == pytest.approx(measured, abs=0.06)
    assert float(numbers[2]) == pytest.approx(published, abs=0.06)
    assert numbers[3] == (f" ({len(found)} of 10)" if len(found) < 10 else "")


def test_tables_in_results_are_what_their_run_files_give(tmp_path, in_root):
    tables = [path for path in Path("results").rglob("table.md") if path.parent.name in LAYOUTS]
    assert len(tables) > 8
    for path in tables:
        dataset = path.parent.name
        runs = read_runs([path.parents[1]], dataset)
        assert to_markdown(summarise(runs, dataset)) in path.read_text(encoding="utf-8")
    shutil.copytree("results/multiclass", tmp_path / "multiclass")
    multiclass_experiment.report(tmp_path / "multiclass")
    table = (tmp_path / "multiclass" / "table.md").read_text(encoding="utf-8")
    assert table == Path("results", "multiclass", "table.md").read_text(encoding="utf-8")


def test_pictures_are_drawn(tmp_path, in_root, monkeypatch):
    drawn, savefig = [], Figure.savefig

    def keep(figure, *arguments, **how):
        drawn.append(figure)
        savefig(figure, *arguments, **how)

    monkeypatch.setattr(Figure, "savefig", keep)
    for draw in (docs.results.draw_table1, docs.results.draw_trade_off, docs.results.draw_costs):
        draw(tmp_path / "picture.png")
        with Image.open(tmp_path / "picture.png") as image:
            assert min(image.size) > 300
    differences, trade_off, costs = (figure.axes[0] for figure in drawn)
    texts = {text.get_position(): text.get_text() for text in differences.texts}
    columns = [label.get_text() for label in differences.get_xticklabels()]
    airplane = {name: texts[column, 0] for column, name in enumerate(columns)}
    measured, _, published = docs.results.table1()
    for name in ("raw_ocsvm", "dsebm", "transformations"):
        value = measured[name].iloc[0] - published[name].iloc[0]
        assert float(airplane[name]) == pytest.approx(value, abs=0.051)
    assert differences.get_yticklabels()[0].get_text() == "airplane"
    (rotation,) = [line for line in trade_off.lines if line.get_label() == "rotation"]
    assert rotation.get_xydata()[0] == pytest.approx((27_000, 88.7), abs=0.05)
    fast = float(docs.results.over_classes("mean", "results/fast", "cifar10"))
    assert f"fast: {fast}" in {text.get_text() for text in costs.texts}
    assert any(line.get_xydata()[0] == pytest.approx((0.107, fast)) for line in costs.lines)


def test_the_page_on_reading_names_what_there_is():
    rows = (ROOT / "docs" / "reading.md").read_text(encoding="utf-8").split("|---|---|---|")[1]
    named = 0
    for _, files, functions in re.findall(r"^\|(.*)\|(.*)\|(.*)\|$", rows, re.MULTILINE):
        paths = re.findall(r"`(.*?)\.py`", files)
        modules = [importlib.import_module(path.replace("/", ".")) for path in paths]
        for name in re.findall(r"`(.*?)`", functions):
            own = [each for each in modules if hasattr(each, name.partition(".")[0])]
            assert any(callable(operator.attrgetter(name)(each)) for each in own), name
            named += 1
    assert f"{named} functions" in (ROOT / "docs" / "reading.md").read_text(encoding="utf-8")


def blocks():
    """The examples of docs/extending.md: a method, its row, a data set's file, its row."""
    return re.findall(r"```python\n(.*?)```", EXTENDING, re.DOTALL)


def command(name):
    """Its command that has this word, as arguments."""
    return re.search(rf"    python experiments\.py (.*{name}.*)", EXTENDING)[1].split()


def test_the_method_of_the_page_on_extending_runs(tmp_path, monkeypatch, capsys):
    (tmp_path / "nearest.py").write_text(blocks()[0])
    spec = spec_from_file_location("baselines.nearest", tmp_path / "nearest.py")
    module = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "baselines.nearest", module)
    spec.loader.exec_module(module)
    monkeypatch.setitem(baselines.METHODS, "nearest", None)  # to be taken out again
    exec(blocks()[1], dict(vars(baselines)))
    arguments = [each.removesuffix(",transformations") for each in command("nearest")]
    assert experiments.main([*arguments, "--results-dir", str(tmp_path)]) == 0
    details = read_details(tmp_path / "digits" / "digits_nearest_0_0.npz")
    assert details["settings"]["n_neighbors"] == 5
    assert details["metrics"]["distance"]["auroc"] > 0.99
    assert "nearest" in capsys.readouterr().out


def write_pictures(folder, n, dark=False):
    rng = np.random.default_rng(n)
    folder.mkdir(parents=True)
    for i in range(n):
        pixels = rng.integers(0, 60 if dark else 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")


def test_the_data_set_of_the_page_on_extending_runs(tmp_path, monkeypatch, capsys):
    for part, n in (("train", 30), ("test", 20)):
        write_pictures(tmp_path / "leaves" / part / "healthy", n)
        write_pictures(tmp_path / "leaves" / part / "spotted", n + 1, dark=True)
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    exec(blocks()[2], {})
    for name, layout in eval(f"{{{blocks()[3]}}}", {"Layout": Layout}).items():
        monkeypatch.setitem(LAYOUTS, name, layout)
    assert experiments.main(command("leaves")) == 0
    assert "spotted" in capsys.readouterr().out
    assert read_details(Path("runs", "leaves", "leaves_raw_ocsvm_1_0.npz"))["n_train"] == 31


def test_the_example_of_a_folder_of_pictures_runs(tmp_path, monkeypatch, capsys):
    write_pictures(tmp_path / "good", 100)
    write_pictures(tmp_path / "mixed", 5, dark=True)
    module = models.transformation_detector
    monkeypatch.setattr(module, "create_wide_residual_network", create_small_network)
    monkeypatch.setitem(RECIPES, "best_short", {"transformations": "simple", "epochs": 1})
    monkeypatch.setattr(sys, "argv", ["", str(tmp_path / "good"), str(tmp_path / "mixed")])
    runpy.run_module("examples.folder_of_images", run_name="__main__")
    lines = [line for line in capsys.readouterr().out.splitlines() if "look as odd" in line]
    assert len(lines) == 5 and all("mixed" in line for line in lines)
    shares = [int(re.search(r": (\d+)%", line)[1]) for line in lines]
    assert shares == sorted(shares)

import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from sklearn.metrics import precision_recall_curve, roc_auc_score, roc_curve

from utils.datasets import LAYOUTS
from utils.results import (
    NEEDED,
    PUBLISHED,
    ResultError,
    Run,
    plot_roc,
    read_details,
    read_run,
    read_runs,
    report,
    summarise,
    write_run,
)


def write(tmp_path, aurocs, recipe="paper", run=0, backend="tensorflow"):
    """Runs with about the AUROC given, by class; returns their true AUROCs."""
    measured = {}
    for class_index, wanted in aurocs.items():
        rng = np.random.default_rng((class_index, run))
        normal = np.arange(1000) < 300
        scores = rng.normal(size=1000) + normal * wanted * 3
        details = {
            "class_index": class_index,
            "method": "transformations",
            "recipe": recipe,
            "reduced": recipe != "paper",
            "run": run,
            "seconds": {"training": 2.0, "scoring": 1.0},
            "device": "a test",
            "backend": backend,
            "precision": "float32",
            "seed": run,
            "settings": {},
        }
        run_ = Run(tmp_path, "cifar10", "transformations", class_index, run)
        both = {"dirichlet": scores, "simplified": scores + rng.normal(size=1000)}
        measured[class_index] = write_run(run_.path, normal, both, details)
    return measured


def test_a_run_holds_scores_areas_and_how_it_was_made(tmp_path):
    aurocs = write(tmp_path, {3: 0.8})[3]
    path = tmp_path / "cifar10" / "cifar10_transformations_3_0.npz"
    with np.load(path) as file:
        assert sorted(file.files) == ["details", "normal", "scores_dirichlet", "scores_simplified"]
        assert file["normal"].sum() == 300 and file["normal"].dtype == bool
        assert file["scores_simplified"].shape == (1000,)
        assert file["scores_simplified"].dtype == np.float32
    normal, scores, details = read_run(path)
    assert list(scores) == ["dirichlet", "simplified"]
    for name, values in scores.items():
        found = details["metrics"][name]
        assert found["auroc"] == aurocs[name] == roc_auc_score(normal, values)
        for kind, positive, ranking in (("normal", normal, values), ("anomaly", ~normal, -values)):
            precision, recall, _ = precision_recall_curve(positive, ranking)
            assert found[f"aupr_{kind}"] == pytest.approx(-np.trapezoid(precision, recall))
    assert details["seconds"] == {"training": 2.0, "scoring": 1.0}
    assert read_details(path) == details
    assert [f.name for f in path.parent.iterdir()] == [path.name]


def test_scores_that_float32_would_tie_stay_as_they_are(tmp_path):
    rng = np.random.default_rng(0)
    normal = np.arange(1000) < 300
    apart = rng.normal(size=1000) + normal
    scores = {"apart": apart, "close": 1 + 1e-12 * apart, "large": 1e300 * apart}
    run = Run(tmp_path, "cifar10", "transformations", 0, 0)
    aurocs = write_run(run.path, normal, scores, {})
    for name, dtype in (("apart", np.float32), ("close", np.float64), ("large", np.float64)):
        values = read_run(run.path)[1][name]
        assert values.dtype == dtype
        assert aurocs[name] == pytest.approx(roc_auc_score(normal, scores[name]), abs=1e-6)
        assert roc_auc_score(normal, values) == aurocs[name]


def test_runs_of_earlier_versions_are_read_alike(tmp_path):
    """They held float64 scores, the first one's curves and areas, and AUROCs as "variants"."""
    rng = np.random.default_rng(0)
    normal = np.arange(1000) < 300
    scores = {name: rng.normal(size=1000) + normal for name in ("dirichlet", "simplified")}
    details = dict.fromkeys(NEEDED, "") | {"class_index": 0, "seconds": {"training": 1.0}}
    variants = {name: roc_auc_score(normal, values) for name, values in scores.items()}
    fpr, tpr, _ = roc_curve(normal, scores["dirichlet"])
    path = tmp_path / "old.npz"
    arrays = {f"scores_{name}": values for name, values in scores.items()} | {"normal": normal}
    arrays |= {"auroc": variants["dirichlet"], "aupr_normal": 0.5, "aupr_anomaly": 0.5}
    arrays |= {"roc_fpr": fpr.astype(np.float32), "roc_tpr": tpr.astype(np.float32)}
    np.savez(path, **arrays, details=np.array(json.dumps(details | {"variants": variants})))
    write_run(tmp_path / "new.npz", normal, scores, details)
    found, wanted = read_details(path)["metrics"], read_details(tmp_path / "new.npz")["metrics"]
    for name in scores:
        assert found[name] == pytest.approx(wanted[name], abs=1e-6)
    normal_, scores_, _ = read_run(path)
    assert (normal_ == normal).all()
    assert all((scores_[name] == scores[name]).all() for name in scores)


def test_table_has_mean_sem_published_and_difference(tmp_path):
    runs = [write(tmp_path, {2: 0.5}, run=run)[2]["dirichlet"] for run in range(3)]
    table = summarise(read_runs([tmp_path], "cifar10"), "cifar10")
    row = table[table["score"] == "dirichlet"].iloc[0]
    assert row["class"] == "bird" and row["runs"] == 3
    assert row["measured"] == pytest.approx(100 * np.mean(runs))
    assert row["sem"] == pytest.approx(100 * np.std(runs, ddof=1) / np.sqrt(3))
    assert row["published"] == 78.1 and row["published_sem"] == 0.4
    assert row["difference"] == pytest.approx(100 * np.mean(runs) - 78.1)
    assert table[table["score"] == "simplified"]["published"].isna().all()


def test_published_rows_are_of_the_classes_they_name():
    published = pd.read_csv(PUBLISHED)
    for row in published.itertuples():
        assert LAYOUTS[row.dataset].class_names[row.class_index] == row.class_name
    # Table 1 has 42 classes under 6 methods, and CIFAR-10's under Deep SVDD
    assert len(published) == 42 * 6 + 10
    assert not published.duplicated(["dataset", "class_index", "method"]).any()


def test_runs_of_other_backends_and_folders_have_rows_of_their_own(tmp_path):
    aurocs = [
        write(tmp_path / "a", {2: 0.5}),
        write(tmp_path / "a", {2: 0.7}, run=1, backend="jax"),
    ]
    aurocs.append(write(tmp_path / "b", {2: 0.3}))
    text = report(tmp_path / "a", "cifar10", [tmp_path / "b"])
    table = pd.read_csv(tmp_path / "a" / "cifar10" / "table.csv").query("score == 'dirichlet'")
    expected = [100 * each[2]["dirichlet"] for each in (aurocs[1], aurocs[0], aurocs[2])]
    assert sorted(table["measured"]) == pytest.approx(sorted(expected), abs=1e-3)
    assert (table["runs"] == 1).all()
    assert report(tmp_path / "a", "cifar10", [tmp_path / "b", tmp_path / "b" / ".." / "a"]) == text
    header = text.splitlines()[0]
    assert "backend" in header and "folder" in header and "precision" not in header
    assert "backend" not in report(tmp_path / "b", "cifar10").splitlines()[0]


def test_copies_of_runs_are_no_runs(tmp_path):
    write(tmp_path, {2: 0.5})
    path = tmp_path / "cifar10" / "cifar10_transformations_2_0.npz"
    for name in (
        "copy of run (1)",
        "cifar10_transformations_2_0 (1)",
        "cifar10_2_0",
        "cifar10_x_2",
    ):
        shutil.copy(path, path.with_name(f"{name}.npz"))
    shutil.copy(path, path.with_name(f".{path.name}"))
    assert set(read_runs([tmp_path], "cifar10")["path"]) == {path}
    assert (summarise(read_runs([tmp_path], "cifar10"), "cifar10")["runs"] == 1).all()


def test_average_only_over_all_classes(tmp_path):
    write(tmp_path, dict.fromkeys(range(9), 0.4))
    table = summarise(read_runs([tmp_path], "cifar10"), "cifar10")
    assert "average" not in set(table["class"])
    write(tmp_path, {9: 0.7})
    table = summarise(read_runs([tmp_path], "cifar10"), "cifar10").query("score == 'dirichlet'")
    last = table.iloc[-1]
    assert last["class"] == "average"
    assert last["measured"] == pytest.approx(table["measured"][:-1].mean())
    assert last["published"] == pytest.approx(86.0, abs=0.05)  # the paper's own average


def test_reduced_recipes_stand_apart_and_beside_no_published_number(tmp_path):
    write(tmp_path, {2: 0.5})
    write(tmp_path, {2: 0.1}, recipe="paper, 0.1 epochs", run=1)
    table = summarise(read_runs([tmp_path], "cifar10"), "cifar10").query("score == 'dirichlet'")
    assert table["recipe"].tolist() == ["paper", "paper, 0.1 epochs"]
    assert table["runs"].tolist() == [1, 1]
    assert table["published"].notna().tolist() == [True, False]


def test_report_writes_csv_markdown_and_plot(tmp_path):
    aurocs = write(tmp_path, {0: 0.5, 1: 0.9})
    text = report(tmp_path, "cifar10")
    folder = tmp_path / "cifar10"
    airplane = re.search(r"\| airplane .*dirichlet.*", text)[0]
    assert f"{100 * aurocs[0]['dirichlet']:.1f} (1)" in airplane and "74.7 ± 0.4" in airplane
    assert text in (folder / "table.md").read_text(encoding="utf-8")
    csv = pd.read_csv(folder / "table.csv")
    assert csv["measured"][0] == pytest.approx(100 * aurocs[0]["dirichlet"], abs=1e-3)
    assert (folder / "roc.png").stat().st_size > 5_000


def test_the_curves_rise_from_no_anomalies_and_no_normal_images(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: drawn.append(self))
    aurocs = write(tmp_path, {0: 0.5, 1: 0.9})
    plot_roc(read_runs([tmp_path], "cifar10"), "cifar10", tmp_path / "roc.png")
    for index, panel in zip((0, 1), drawn[0].axes, strict=False):
        path = tmp_path / "cifar10" / f"cifar10_transformations_{index}_0.npz"
        normal, scores, _ = read_run(path)
        expected = np.stack(roc_curve(normal, scores["dirichlet"])[:2], axis=1)
        curve = panel.lines[0]
        np.testing.assert_allclose(curve.get_xydata(), expected)
        assert curve.get_label() == f"transformations: {100 * aurocs[index]['dirichlet']:.1f}"
        assert panel.get_title() == LAYOUTS["cifar10"].class_names[index]


def test_what_is_no_result_is_named(tmp_path):
    with pytest.raises(ResultError, match="no runs of cifar10"):
        report(tmp_path, "cifar10")
    made = dict.fromkeys(NEEDED, "") | {"seconds": {}, "class_index": 0, "method": "m"}
    write_run(tmp_path / "cifar10" / "cifar10_m_0_0.npz", np.arange(4) < 2, {"s": np.ones(4)}, made)
    with pytest.raises(ResultError, match="it does not say run, reduced"):
        report(tmp_path, "cifar10")
    shutil.rmtree(tmp_path / "cifar10")
    (tmp_path / "cifar10").mkdir()
    path = tmp_path / "cifar10" / "cifar10_transformations_0_0.npz"
    path.write_bytes(b"garbage")
    with pytest.raises(ResultError, match=r"_0_0\.npz is no result.*delete it"):
        report(tmp_path, "cifar10")
    np.savez(path, a=1)
    with pytest.raises(ResultError, match="no result"):
        report(tmp_path, "cifar10")
    with open(path, "wb") as file:
        np.save(file, np.ones(3))
    with pytest.raises(ResultError, match="no result"):
        report(tmp_path, "cifar10")
    scores = np.arange(4.0)
    np.savez(path, normal=scores > 2, scores_dirichlet=scores, details='{"recipe": "paper"}')
    with pytest.raises(ResultError, match=r"no result.*does not say backend, precision, seconds"):
        report(tmp_path, "cifar10")


def test_names_of_methods_and_folders_may_have_digits_and_dollars(tmp_path):
    folder = tmp_path / r"r$\bad$"
    write(folder, {2: 0.5})
    path = folder / "cifar10" / "cifar10_transformations_2_0.npz"
    path.rename(path.with_name("cifar10_pca2_2_0.npz"))
    write(tmp_path, {2: 0.5})
    assert len(read_runs([folder], "cifar10")) == 2
    report(tmp_path, "cifar10", [folder])


def test_a_run_cut_or_changed_anywhere_is_named(tmp_path):
    write(tmp_path, {2: 0.5})
    path = tmp_path / "cifar10" / "cifar10_transformations_2_0.npz"
    whole = path.read_bytes()
    for cut in range(0, len(whole), len(whole) // 40):
        path.write_bytes(whole[:cut])
        with pytest.raises(ResultError, match=rf"{path.name} is no result .*delete it"):
            read_details(path)
    for at in range(0, len(whole), len(whole) // 200):
        changed = bytearray(whole)
        changed[at] ^= 255
        path.write_bytes(changed)
        try:
            read_details(path)
        except ResultError as error:
            assert path.name in str(error)


def test_a_run_of_ten_thousand_images_stays_under_100_kb(tmp_path):
    rng = np.random.default_rng(0)
    normal = np.arange(10_000) < 1_000
    scores = {name: rng.normal(size=10_000) + normal for name in ("dirichlet", "simplified")}
    details = {key: 0 for key in ("class_index", "method", "recipe", "reduced", "run", "device")}
    run = Run(tmp_path, "cifar10", "transformations", 0, 0)
    write_run(run.path, normal, scores, details | {"seconds": {}})
    assert run.path.stat().st_size < 100_000

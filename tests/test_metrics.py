import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_curve

from utils.metrics import auroc, evaluate


@pytest.fixture
def example():
    rng = np.random.default_rng(0)
    normal = rng.random(500) < 0.2
    scores = np.round(rng.normal(size=500) + normal, 1)  # with ties
    return normal, scores


def test_auroc_is_the_share_of_pairs_in_order(example):
    normal, scores = example
    pairs = scores[normal][:, None] - scores[~normal][None]
    assert auroc(normal, scores) == pytest.approx(np.mean((np.sign(pairs) + 1) / 2), rel=1e-12)
    u = stats.mannwhitneyu(scores[normal], scores[~normal]).statistic
    assert auroc(normal, scores) == pytest.approx(u / pairs.size, rel=1e-12)


def test_areas_are_those_of_the_curves_at_every_threshold(example):
    normal, scores = example
    result = evaluate(normal, scores)
    assert list(result) == ["auroc", "aupr_normal", "aupr_anomaly"]
    fpr, tpr, _ = roc_curve(normal, scores)
    assert np.trapezoid(tpr, fpr) == pytest.approx(result["auroc"])
    for positive, wanted, ranking in (("normal", normal, scores), ("anomaly", ~normal, -scores)):
        # every threshold, written out
        cuts = np.unique(ranking)[::-1]
        hits = np.array([wanted[ranking >= cut].sum() for cut in cuts])
        taken = np.array([(ranking >= cut).sum() for cut in cuts])
        area = np.trapezoid(np.r_[1, hits / taken], np.r_[0, hits / wanted.sum()])
        assert result[f"aupr_{positive}"] == pytest.approx(area, rel=1e-9)


def test_a_perfect_and_a_reversed_ranking():
    normal = np.array([True, True, False, False])
    assert evaluate(normal, np.array([4.0, 3, 2, 1]))["auroc"] == 1
    assert evaluate(normal, np.array([1.0, 2, 3, 4]))["auroc"] == 0


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(ValueError, match="both kinds"):
        evaluate(np.ones(3, bool), np.arange(3.0))
    with pytest.raises(ValueError, match="1 of 3 scores are not finite"):
        evaluate(np.array([True, False, False]), np.array([1, np.nan, 2]))

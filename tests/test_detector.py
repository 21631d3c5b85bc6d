import copy
import pickle

import numpy as np
import pytest
from sklearn import exceptions
from sklearn.base import clone, is_outlier_detector
from sklearn.utils import estimator_checks
from sklearn.utils.validation import check_is_fitted

from models.transformation_detector import TransformationDetector
from utils.detector import Detector, NotFittedError
from utils.threshold import choose_threshold

SETTINGS = {
    "transformations": "simple",
    "widen_factor": 1,
    "epochs": 0.5,
    "precision": "float32",
    "verbose": 0,
}


class Mean(Detector):
    """Dark images are anomalies: a detector whose scores are known."""

    def fit(self, x, y=None):
        self._forget_calibration()
        self.seconds_ = {}
        return self

    def score_samples(self, x):
        return x.mean((1, 2, 3))


@pytest.fixture(scope="module")
def x(digits):
    return digits.x_train[digits.y_train == 4]


@pytest.fixture(scope="module")
def fitted(x):
    return TransformationDetector(**SETTINGS).fit(x[:60]).calibrate(x[60:], 0.1)


@pytest.mark.parametrize(
    "check",
    [
        estimator_checks.check_estimator_cloneable,
        estimator_checks.check_estimator_repr,
        estimator_checks.check_estimator_tags_renamed,
        estimator_checks.check_do_not_raise_errors_in_init_or_set_params,
        estimator_checks.check_get_params_invariance,
        estimator_checks.check_mixin_order,
        estimator_checks.check_no_attributes_set_in_init,
        estimator_checks.check_parameters_default_constructible,
        estimator_checks.check_set_params,
        estimator_checks.check_valid_tag_types,
        # these give two-dimensional input, and want it refused
        estimator_checks.check_estimators_unfitted,
        estimator_checks.check_fit1d,
    ],
    ids=lambda check: check.__name__,
)
def test_scikit_learns_checks_that_need_no_table_of_numbers(check):
    check("TransformationDetector", TransformationDetector(**SETTINGS))


def test_it_is_an_outlier_detector_that_knows_whether_it_is_fitted(fitted):
    assert is_outlier_detector(fitted)
    check_is_fitted(fitted)
    with pytest.raises(exceptions.NotFittedError):
        check_is_fitted(clone(fitted))


def test_fit_returns_the_detector_and_keeps_settings_and_images(x):
    """check_fit_returns_self, check_dont_overwrite_parameters, check_estimators_overwrite_params,
    check_readonly_memmap_input and check_dict_unchanged, for images."""
    x = x[:20].copy()
    before = x.copy()
    x.setflags(write=False)
    detector = TransformationDetector(**SETTINGS | {"epochs": 0.01})
    settings = detector.get_params()
    assert detector.fit(x, None) is detector
    assert detector.get_params() == settings
    public = {name for name in vars(detector) if not name.startswith("_")}
    assert all(name.endswith("_") for name in public - settings.keys())
    attributes = set(vars(detector))
    detector.score_samples(x)
    assert set(vars(detector)) == attributes
    np.testing.assert_array_equal(x, before)


def test_fitting_again_is_fitting_anew(x):
    """check_fit_idempotent; and the old threshold, which is of another network, is gone."""
    detector = TransformationDetector(**SETTINGS | {"epochs": 0.05}).fit(x[:30]).calibrate(x[30:60])
    scores = detector.score_samples(x[:9])
    np.testing.assert_array_equal(detector.fit(x[:30]).score_samples(x[:9]), scores)
    with pytest.raises(NotFittedError, match="no threshold yet: after fit, call calibrate"):
        detector.predict(x)


def test_decision_function_and_predict_follow_from_the_score(fitted, x, digits):
    scores = fitted.score_samples(digits.x_test[:99])
    threshold = choose_threshold(fitted.score_samples(x[60:]), 0.1)
    np.testing.assert_array_equal(fitted.decision_function(digits.x_test[:99]), scores - threshold)
    np.testing.assert_array_equal(
        fitted.predict(digits.x_test[:99]), np.where(scores < threshold, -1, 1)
    )
    assert set(fitted.predict(digits.x_test[:99])) == {-1, 1}


def test_the_rate_of_held_out_images_flagged_is_the_one_chosen():
    x = np.random.default_rng(0).integers(0, 256, (999, 4, 4, 1), dtype=np.uint8)
    detector = Mean().fit(x).calibrate(x, 0.05)
    scores = detector.score_samples(x)
    expected = np.sort(scores)[49]  # the 50th of 999: 0.05 * 1000
    assert detector.offset_ == expected
    assert (detector.predict(x) == -1).sum() == (scores < expected).sum() <= 49
    assert detector.set_false_alarm_rate(0.2) is detector
    assert detector.offset_ == np.sort(scores)[199]
    np.testing.assert_array_equal(
        detector.p_value(x[:50]), [(scores < score).mean() for score in scores[:50]]
    )


def test_what_is_asked_too_early_is_named(x):
    for ask in ("score_samples", "predict", "decision_function", "p_value", "responses"):
        with pytest.raises(NotFittedError, match="fit"):
            getattr(TransformationDetector(), ask)(x)
    with pytest.raises(NotFittedError, match="call fit"):
        TransformationDetector().calibrate(x)
    with pytest.raises(NotFittedError, match="call fit before save"):
        TransformationDetector().save("model.keras")
    with pytest.raises(TypeError, match="held out"):
        TransformationDetector().fit_predict(x)
    with pytest.raises(ValueError, match="at least 19"):
        Mean().fit(x).calibrate(x[:5])


def test_pickles_and_copies_score_alike(fitted, digits, tmp_path):
    fitted.save(tmp_path / "model.keras")
    others = [
        pickle.loads(pickle.dumps(fitted)),
        copy.deepcopy(fitted),
        TransformationDetector.load(tmp_path / "model.keras"),
    ]
    for other in others:
        np.testing.assert_array_equal(
            other.decision_function(digits.x_test[:30]),
            fitted.decision_function(digits.x_test[:30]),
        )
        np.testing.assert_array_equal(other.calibration_scores_, fitted.calibration_scores_)
        assert other.get_params() == fitted.get_params()
        assert other.details_ == fitted.details_ and other.found_ == fitted.found_
    unfitted = pickle.loads(pickle.dumps(TransformationDetector(seed=3)))
    assert unfitted.seed == 3 and not hasattr(unfitted, "alpha_")


def test_clone_has_the_settings_and_nothing_learnt(fitted):
    other = clone(fitted)
    assert other.get_params() == fitted.get_params()
    assert not hasattr(other, "alpha_") and not hasattr(other, "offset_")


def test_responses_are_the_softmax_of_the_network(fitted, x):
    responses = fitted.responses(x[:11])
    assert responses.shape == (11, 8, 8)
    np.testing.assert_allclose(responses.sum(-1), 1, rtol=1e-5)
    simplified = fitted.score_variants(x[:11])["simplified"]
    np.testing.assert_allclose(np.diagonal(responses, 0, 1, 2).mean(-1), simplified, rtol=1e-5)

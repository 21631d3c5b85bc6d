import copy
import json
import pickle
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
from sklearn import exceptions
from sklearn.base import clone, is_outlier_detector
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, KFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import estimator_checks
from sklearn.utils.validation import check_is_fitted

from baselines import METHODS
from models.transformation_detector import TransformationDetector
from utils.detector import Detector, NotFittedError
from utils.settings import SEED, number, setting
from utils.threshold import choose_threshold

SETTINGS = {
    "transformations": "simple",
    "widen_factor": 1,
    "epochs": 0.5,
    "precision": "float32",
    "verbose": 0,
}


@dataclass(eq=False, repr=False, kw_only=True)
class Mean(Detector):
    """Dark images are anomalies: a detector whose scores are known."""

    power: float = setting(1.0, number())
    seed: int | None = setting(None, SEED)
    stop: ClassVar = None

    def _fit(self, x, checkpoint, callbacks):
        self.alpha_ = self.settings_.seed
        if self.stop is not None:
            raise self.stop

    def _scores(self, x):
        return {"own": (x / 255.0).mean((1, 2, 3)) ** self.settings_.power}


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
    np.testing.assert_allclose(detector.fit(x[:30]).score_samples(x[:9]), scores, rtol=1e-3)
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
        detector.p_value(x[:50]), [(1 + (scores <= score).sum()) / 1000 for score in scores[:50]]
    )


def test_what_is_asked_too_early_is_named(x):
    asked = ("score_samples", "scores", "predict", "decision_function", "p_value", "responses")
    for ask in asked:
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
        assert other.details_ == fitted.details_ and other.record_ == fitted.record_
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
    simplified = fitted.scores(x[:11])["simplified"]
    np.testing.assert_allclose(np.diagonal(responses, 0, 1, 2).mean(-1), simplified, rtol=1e-5)


@pytest.mark.parametrize("stop", [ValueError("diverged"), KeyboardInterrupt(), MemoryError()])
def test_a_fit_that_fails_or_is_stopped_leaves_nothing_of_the_one_before(x, stop, monkeypatch):
    detector = Mean(power=2.0).fit(x).calibrate(x)
    monkeypatch.setattr(Mean, "stop", stop)
    with pytest.raises(type(stop)):
        detector.fit(x)
    assert vars(detector) == {"power": 2.0, "seed": None, "verbose": 1}
    with pytest.raises(NotFittedError):
        detector.score_samples(x)


def test_settings_that_make_no_sense_leave_a_fitted_detector_as_it_is(x):
    detector = Mean().fit(x)
    for settings in ({"power": "2"}, {"seed": 0.5}):
        with pytest.raises(ValueError, match=f"^{next(iter(settings))} is "):
            clone(detector).set_params(**settings).fit(x)
    with pytest.raises(ValueError, match="got shape"):
        detector.fit(x[0])
    assert np.isfinite(detector.score_samples(x)).all()


def test_a_random_seed_is_drawn_and_recorded(x):
    seeds = {Mean().fit(x).settings_.seed for _ in range(9)}
    assert len(seeds) == 9 and all(0 <= each < 2**31 for each in seeds)
    detector = Mean().fit(x)
    assert detector.get_settings()["seed"] == detector.alpha_ and detector.seed is None
    assert Mean(seed=np.int64(5)).fit(x).get_settings() == {"power": 1.0, "seed": 5, "verbose": 1}


@pytest.mark.parametrize("name", METHODS)
def test_settings_of_numpy_are_plain_in_every_method(name):
    """What randomised searches and grids by np.arange hand over."""
    kinds = {int: np.int64, float: np.float32, str: np.str_, bool: np.bool_}
    create = METHODS[name].create
    defaults = create().get_params()
    made = create(**{k: kinds.get(type(v), lambda v: v)(v) for k, v in defaults.items()})
    settings = made.get_settings()
    assert json.loads(json.dumps(settings)).keys() == defaults.keys()
    for key, value in settings.items():
        assert type(value) in (int, float, str, tuple, type(None), bool), key
    with pytest.raises(ValueError, match=r"^seed is -1, expected a whole number"):
        create(seed=-1).fit(np.zeros((2, 8, 8, 1), np.uint8))


def test_nan_is_named(x):
    images = 2 * (x / 255) - 1
    images[3, 0, 0, 0] = images[5, 1, 1, 0] = np.nan
    for name in METHODS:
        with pytest.raises(ValueError, match=f"2 of {len(x)} images hold NaN"):
            METHODS[name].create().fit(images)


def test_floats_from_0_to_1_are_told_of_the_scaling(x):
    with pytest.warns(UserWarning, match=r"half of the range .* pass 2 \* x - 1"):
        Mean().fit(x / 255)


@pytest.fixture(scope="module")
def labelled(digits):
    """Fours as training images, among them some zeros, with the label that roc_auc takes."""
    chosen = np.isin(digits.y_train, (4, 0))
    return digits.x_train[chosen][:90], (digits.y_train[chosen][:90] == 4).astype(int)


def test_without_a_threshold_the_decision_function_is_the_score(x):
    detector = Mean().fit(x)
    np.testing.assert_array_equal(detector.decision_function(x), detector.score_samples(x))


def test_a_method_in_a_pipeline_in_two_processes(labelled):
    x, y = labelled
    pipeline = make_pipeline(FunctionTransformer(), METHODS["raw_ocsvm"].create(verbose=0))
    search = GridSearchCV(
        pipeline, {"rawocsvm__nu": np.array([0.1, 0.5])}, scoring="roc_auc", cv=2, n_jobs=2
    )
    assert np.isfinite(search.fit(x, y).cv_results_["mean_test_score"]).all()


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_cross_validation_by_the_area_under_the_roc_curve(labelled, n_jobs):
    x, y = labelled
    folds = KFold(3)
    found = cross_val_score(Mean(), x, y, scoring="roc_auc", cv=folds, n_jobs=n_jobs)
    expected = [roc_auc_score(y[test], x[test].mean((1, 2, 3))) for _, test in folds.split(x)]
    np.testing.assert_allclose(found, expected)


def test_a_search_over_settings_in_a_pipeline(labelled):
    x, y = labelled
    pipeline = make_pipeline(FunctionTransformer(lambda x: x[:, ::2, ::2]), Mean())
    grid = {"mean__power": np.array([1.0, 2.0, -1.0])}
    search = GridSearchCV(pipeline, grid, scoring="roc_auc", cv=3)
    failed = pytest.warns(exceptions.FitFailedWarning, match=r"power is -1\.0")
    with failed, pytest.warns(UserWarning, match="non-finite"):
        search.fit(x, y)
    assert np.isfinite(search.best_score_) and search.best_params_["mean__power"] > 0
    assert np.isfinite(search.decision_function(x)).all()


def test_cross_validation_without_a_scoring_is_refused_before_any_training(labelled):
    for detector in (TransformationDetector(), IsolationForest()):
        with pytest.raises(TypeError, match="scoring"):
            cross_val_score(detector, *labelled)


def test_no_method_takes_a_name_that_scikit_learn_reserves():
    for method in METHODS.values():
        reserved = {"score", "fit", "predict", "transform", "decision_function"}
        assert not reserved & method.create().get_params().keys()


def test_a_checkpoint_is_that_of_its_backend(x, tmp_path, monkeypatch):
    """A run of two backends would be said to be one of the second."""
    path = tmp_path / "run.checkpoint.keras"
    settings = {"transformations": "rotations", "widen_factor": 1, "samples": 128, "verbose": 0}
    TransformationDetector(**settings).fit(x, checkpoint=path)
    with pytest.raises(ValueError, match="with other settings or images"):
        TransformationDetector(**settings).fit(x[::-1], checkpoint=path)  # of the same mean
    monkeypatch.setattr("utils.detector.backend", lambda: "another")
    with pytest.raises(ValueError, match="with other settings or images"):
        TransformationDetector(**settings).fit(x, checkpoint=path)
    with pytest.raises(ValueError, match="a checkpoint needs a number"):
        TransformationDetector(**settings, seed=None).fit(x, checkpoint=path)

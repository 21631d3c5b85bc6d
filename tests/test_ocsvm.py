import tracemalloc

import keras
import numpy as np
import pytest
from scipy.spatial.distance import cdist
from scipy.special import logsumexp
from sklearn.svm import OneClassSVM
from sklearn.utils import estimator_checks

from baselines import deep, ocsvm
from baselines.ocsvm import CAEOCSVM, GAMMA_GRID, NU_GRID, RawOCSVM
from utils.detector import NotFittedError
from utils.metrics import auroc

QUIET = {"verbose": 0}


def pixels(x):
    return (2 * (x / 255) - 1).reshape(len(x), -1)


def blobs(n, column, seed=0):
    """Noisy 16x16 images with a bright bar at a column."""
    x = np.random.default_rng(seed).integers(0, 60, (n, 16, 16, 1), dtype=np.uint8)
    x[:, :, column : column + 3] += 150
    return x


@pytest.fixture(scope="module")
def problem(digits):
    """Large black and white eights among 30 of every digit: so far apart that sums underflow."""
    x, x_test = (
        np.where(x > 100, 255, 0).astype(np.uint8).repeat(2, 1).repeat(2, 2)
        for x in (digits.x_train, digits.x_test)
    )
    chosen = np.concatenate([np.flatnonzero(digits.y_test == digit)[:30] for digit in range(10)])
    return x[digits.y_train == 8], x_test[chosen], digits.y_test[chosen] == 8


@pytest.fixture(scope="module")
def fitted(problem):
    x, x_test, normal = problem
    detector = RawOCSVM(**QUIET).fit(x)
    return detector, detector.score_in_hindsight(x_test, normal)


@pytest.fixture(scope="module")
def reference(problem):
    """scikit-learn's own RBF path, setting by setting: decision values and exact log sums."""
    x, x_test, _ = problem
    distances = cdist(pixels(x_test), pixels(x), "sqeuclidean")
    decision, log_sum = {}, {}
    for nu in NU_GRID:
        for gamma in GAMMA_GRID:
            machine = OneClassSVM(nu=nu, gamma=gamma).fit(pixels(x))
            decision[nu, gamma] = machine.decision_function(pixels(x_test))
            exponents = -gamma * distances[:, machine.support_]
            log_sum[nu, gamma] = logsumexp(exponents, b=machine.dual_coef_, axis=1)
    return decision, log_sum


def test_distances_of_images_keep_their_digits(digits):
    a, b = pixels(digits.x_train[:50]), pixels(digits.x_train[25:90])
    distances = ocsvm.euclidean_distances(a, b, squared=True)
    np.testing.assert_allclose(distances, cdist(a, b, "sqeuclidean"), rtol=1e-10, atol=1e-11)
    assert distances.min() >= 0


def test_the_grid_is_the_papers():
    np.testing.assert_allclose(NU_GRID, np.arange(1, 10) / 10)
    np.testing.assert_array_equal(GAMMA_GRID, 2.0 ** np.arange(-7, 3))


def test_every_setting_agrees_with_scikit_learns_rbf_path(problem, fitted, reference):
    _, _, normal = problem
    expected = np.array(
        [[auroc(normal, reference[0][nu, gamma]) for gamma in GAMMA_GRID] for nu in NU_GRID]
    )
    np.testing.assert_allclose(fitted[0].auroc_grid_, expected, rtol=0, atol=1e-4)
    assert len(np.unique(reference[0][0.1, 4.0])) < 10  # the offset does make ties here


def test_the_exact_ranking_is_that_of_the_kernel_sums_without_rounding(problem, fitted, reference):
    _, _, normal = problem
    expected = np.array(
        [[auroc(normal, reference[1][nu, gamma]) for gamma in GAMMA_GRID] for nu in NU_GRID]
    )
    np.testing.assert_allclose(fitted[0].auroc_grid_exact_, expected, rtol=0, atol=1e-4)
    plain = auroc(normal, np.exp(reference[1][0.1, 4.0]))  # underflows to ties
    assert abs(plain - fitted[0].auroc_grid_exact_[0, -1]) > 0.01


def test_the_chosen_settings_are_the_best_and_the_scores_are_theirs(problem, fitted, reference):
    _, _, normal = problem
    detector, scores = fitted
    assert list(scores) == ["hindsight", "hindsight_exact", "default"]
    assert all(s.shape == normal.shape and s.dtype == np.float64 for s in scores.values())
    assert auroc(normal, scores["hindsight"]) == detector.auroc_grid_.max() > 0.9
    assert auroc(normal, scores["hindsight_exact"]) == detector.auroc_grid_exact_.max()
    for name, values, setting in (
        ("hindsight", reference[0], (detector.nu_, detector.gamma_)),
        ("hindsight_exact", reference[1], (detector.nu_exact_, detector.gamma_exact_)),
    ):
        np.testing.assert_allclose(scores[name], values[setting], rtol=1e-4, atol=1e-6)
    assert detector.record_["nu"] == detector.nu_
    np.testing.assert_allclose(detector.record_["auroc_grid_exact"], detector.auroc_grid_exact_)


def test_without_hindsight_it_is_scikit_learn_at_nu_0_1_and_its_default_gamma(problem, fitted):
    x, x_test, _ = problem
    expected = OneClassSVM(nu=0.1).fit(pixels(x)).decision_function(pixels(x_test))
    detector, scores = fitted
    np.testing.assert_allclose(detector.score_samples(x_test), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(scores["default"], detector.score_samples(x_test))
    assert list(detector.scores(x_test)) == ["own"]
    expected = OneClassSVM(nu=0.5, gamma=0.01).fit(pixels(x)).decision_function(pixels(x_test))
    found = RawOCSVM(nu=0.5, gamma=0.01, **QUIET).fit(x).score_samples(x_test)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_hindsight_takes_labels_by_name_and_nothing_else(problem, fitted):
    _, x_test, normal = problem
    detector, _ = fitted
    with pytest.raises(TypeError, match="normal"):
        detector.score_in_hindsight(x_test)
    for wrong in (normal[1:], normal.astype(int), None, np.ones_like(normal)):
        with pytest.raises(ValueError, match="expected bool of shape"):
            detector.score_in_hindsight(x_test, wrong)
    again = RawOCSVM(**QUIET).fit(problem[0])
    assert not hasattr(again, "nu_") and list(again.record_) == ["gamma_default"]


def test_fitting_again_forgets_hindsight_and_threshold(problem):
    x, x_test, normal = problem
    detector = RawOCSVM(nu_grid=(0.5,), gamma_grid=(0.01,), **QUIET).fit(x[:40])
    detector.calibrate(x[40:])
    detector.score_in_hindsight(x_test, normal)
    assert set(detector.predict(x_test)) == {-1, 1}
    detector.fit(x)
    assert not hasattr(detector, "nu_") and not hasattr(detector, "auroc_grid_exact_")
    assert not hasattr(detector, "offset_")


def test_scores_do_not_depend_on_the_chunks(problem, fitted, monkeypatch):
    _, x_test, _ = problem
    expected = fitted[0].score_samples(x_test)
    monkeypatch.setattr(ocsvm, "SCORING_ROWS", 7)
    np.testing.assert_allclose(fitted[0].score_samples(x_test), expected, rtol=1e-9, atol=1e-9)


def test_memory_keeps_to_its_bound(monkeypatch):
    n, rows = 1000, 100
    monkeypatch.setattr(ocsvm, "SCORING_ROWS", rows)
    x = np.random.default_rng(0).integers(0, 256, (4 * n, 8, 8, 1), dtype=np.uint8)
    detector = RawOCSVM(gamma_grid=(0.01, 0.1), nu_grid=(0.5,), n_jobs=1, **QUIET)
    tracemalloc.start()
    detector.fit(x[:n]).score_in_hindsight(x, np.arange(4 * n) < n)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    features = 8 * n * x[0].size
    assert peak < 16 * n**2 + 16 * rows * n + 3 * features  # and the solver's, which is not traced


@pytest.mark.parametrize(("detector", "large"), [(RawOCSVM, 5_000), (CAEOCSVM, 2_500)])
def test_larger_images_are_subsampled_as_in_the_paper(detector, large, monkeypatch):
    chosen = []
    monkeypatch.setattr(detector, "_fit_features", lambda self, x, *how: None)
    monkeypatch.setattr(detector, "_features", lambda self, x: chosen.append(x) or np.eye(2))
    monkeypatch.setattr(detector, "_solve", lambda self, gamma, nus: None)
    n = 5_200
    tall = np.zeros((n, 40, 1, 1), np.uint8)
    tall[:, 0, 0, 0], tall[:, 1, 0, 0] = np.divmod(np.arange(n), 256)
    for x, settings in (
        (tall, {}),
        (tall, {"seed": 1}),
        (tall, {}),
        (tall, {"max_train": 70}),
        (tall[:, :32], {}),
        (tall[:60], {}),
    ):
        detector(**settings).fit(x)
    assert [len(x) for x in chosen] == [large, large, large, 70, n, 60]
    numbers = [x[:, :2, 0, 0] @ np.array([256, 1]) for x in chosen[:3]]
    assert len(set(numbers[0])) == large and 0.4 < numbers[0].mean() / n < 0.6
    assert not np.array_equal(numbers[0], numbers[1])
    np.testing.assert_array_equal(numbers[0], numbers[2])


@pytest.mark.parametrize(
    "x", [np.full((20, 16, 16, 1), 7, np.uint8), blobs(1, 3)], ids=["constant", "one image"]
)
def test_degenerate_training_sets_give_finite_scores(x):
    detector = RawOCSVM(**QUIET).fit(x)
    scores = detector.score_in_hindsight(blobs(6, 9), np.arange(6) < 3)
    assert all(np.isfinite(s).all() for s in scores.values())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"nu": 0}, "nu is 0"),
        ({"nu_grid": (0.5, 1.5)}, "nu_grid is 1.5"),
        ({"nu_grid": ()}, "nu_grid is empty"),
        ({"gamma": "auto"}, "gamma is 'auto'"),
        ({"gamma_grid": (1, -2.0)}, "gamma_grid is -2.0"),
        ({"max_train": 0}, "max_train is 0"),
    ],
)
def test_settings_that_make_no_sense_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        RawOCSVM(**settings).fit(blobs(5, 3))


def test_images_of_another_kind_and_an_untrained_detector_are_refused():
    detector = RawOCSVM(**QUIET)
    with pytest.raises(NotFittedError, match="call fit"):
        detector.score_samples(blobs(5, 3))
    detector.fit(blobs(5, 3))
    with pytest.raises(ValueError, match="trained on"):
        detector.score_samples(blobs(5, 3)[:, :8])
    with pytest.raises(ValueError, match="dtype"):
        detector.score_samples(np.zeros((2, 16, 16, 1)))


@pytest.mark.parametrize("detector", [RawOCSVM, CAEOCSVM])
@pytest.mark.parametrize(
    "check",
    [
        estimator_checks.check_estimator_cloneable,
        estimator_checks.check_no_attributes_set_in_init,
        estimator_checks.check_parameters_default_constructible,
        estimator_checks.check_set_params,
    ],
    ids=lambda check: check.__name__,
)
def test_scikit_learns_checks(check, detector):
    check(detector.__name__, detector())


@pytest.fixture(scope="module")
def cae():
    """Trained on images that are bright on the left, and the decoder of its training."""
    decoders, decoder = [], ocsvm.convolutional_decoder

    def kept(*args, **settings):
        decoders.append(decoder(*args, **settings))
        return decoders[-1]

    settings = {"representation_dim": 16, "epochs": 8, "batch_size": 16, **QUIET}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ocsvm, "convolutional_decoder", kept)
        return CAEOCSVM(**settings).fit(halves(64, seed=100)), decoders[0]


def halves(n, seed):
    x = np.random.default_rng(seed).integers(0, 60, (n, 8, 8, 1), dtype=np.uint8)
    x[:, :, :4] += 150
    return x


def test_cae_tells_images_from_their_mirror_images(cae):
    x = halves(20, seed=1)
    scores = cae[0].score_samples(np.concatenate([x, x[:, :, ::-1]]))
    assert scores[:20].min() > scores[20:].max()


def test_cae_is_scikit_learn_on_the_tanh_code(cae):
    cae, _ = cae
    x_test = np.random.default_rng(1).integers(0, 256, (9, 8, 8, 1), dtype=np.uint8)
    codes, test_codes = (
        cae.encoder_.predict(pixels(x).reshape(x.shape), verbose=0).astype(float)
        for x in (halves(64, seed=100), x_test)
    )
    assert codes.shape == (64, 16)
    assert np.abs(cae.encoder_.predict(np.full((1, 8, 8, 1), 1e6), verbose=0)).max() <= 1
    expected = OneClassSVM(nu=0.1).fit(codes).decision_function(test_codes)
    np.testing.assert_allclose(cae.score_samples(x_test), expected, rtol=1e-3, atol=1e-4)


def test_cae_learns_to_reconstruct(cae):
    cae, decoder = cae
    x = halves(64, seed=100)
    x = pixels(x).reshape(x.shape)
    reconstructed = decoder(cae.encoder_(x, training=True), training=True)
    reconstructed = keras.ops.convert_to_numpy(reconstructed)
    assert np.mean((reconstructed - x) ** 2) < 0.5 * x.var()


def test_cae_trains_for_a_fraction_of_an_epoch_and_a_seed_repeats_it(monkeypatch):
    """Equal weights to begin with and equal batches: what follows differs by rounding alone."""
    trainings = []

    def record(model, batches_of, *, total_steps, **_):
        batches = [batches_of(0)(i)[0] for i in range(total_steps)]
        trainings.append((model.get_weights(), batches))

    monkeypatch.setattr(deep, "fit_steps", record)
    settings = {"epochs": 2.5, "batch_size": 32, **QUIET}
    for change in ({}, {}, {"seed": 1}, {"epochs": 3}):
        detector = CAEOCSVM(**settings | change).fit(halves(64, seed=100))
        assert detector.encoder_.output_shape == (None, 256)
    (weights, batches), *others = trainings
    weights_equal = [all(map(np.array_equal, weights, other)) for other, _ in others]
    batches_equal = [all(map(np.array_equal, batches, other)) for _, other in others]
    assert weights_equal == [True, False, True]
    assert batches_equal == [True, False, True]  # as far as the shorter goes
    assert [len(batches) for _, batches in trainings] == [5, 5, 5, 6]

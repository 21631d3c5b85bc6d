import math
from unittest import mock

import numpy as np
import pytest
from scipy.special import log_softmax

from models.pace import CHECK_STEPS, COOL_DOWN, PAIRS, Pace
from models.transformation_detector import TransformationDetector
from utils.training import Checkpoint

SMALL = {
    "transformations": "simple",
    "widen_factor": 1,
    "schedule": "paced",
    "learning_rate": 4e-3,
    "precision": "float32",
    "batch_size": 16,
    "verbose": 0,
}

pytestmark = pytest.mark.usefixtures("small_network")


@pytest.fixture(scope="module")
def fours(digits):
    return digits.x_train[digits.y_train == 4][:, ::2, ::2]


class Watched(Pace):
    """Keeps the learning rate of each step; its clock runs by steps."""

    now = 0.0

    def __init__(self, *arguments, step_seconds=0.0, **more):
        super().__init__(*arguments, **more)
        self.rates, self.step_seconds, self.expected = [], step_seconds, []

    def clock(self):
        return self.now

    def on_train_batch_begin(self, batch, logs=None):
        super().on_train_batch_begin(batch, logs)
        self.rates.append(float(self.model.optimizer.learning_rate))

    def on_train_batch_end(self, batch, logs=None):
        self.now += self.step_seconds
        super().on_train_batch_end(batch, logs)
        self.expected.append(self.expected_steps())


def trained(fours, samples, n=100, pace=None, **more):
    checkpoint = more.pop("checkpoint", None)
    detector = TransformationDetector(**SMALL, samples=samples)
    pace = pace or Watched(fours[100:], **more)
    detector.fit(fours[:n], callbacks=[pace], checkpoint=checkpoint)
    return detector, pace


def one_cycle(steps):
    """The cycle of schedule "one_cycle" with 4e-3, written out."""
    done = np.arange(steps) / steps
    rising = 4e-3 * (1 / 25 + 24 / 25 * done / 0.3)
    return np.where(done < 0.3, rising, 2e-3 * (1 + np.cos(np.pi * (done - 0.3) / 0.7)))


def test_while_the_images_are_recognised_better_the_cycle_is_whole(fours, monkeypatch):
    better = iter(range(1000))
    monkeypatch.setattr("models.pace.log_softmax", lambda z, axis: np.full(z.shape, next(better)))
    detector, pace = trained(fours, 16 * 400)
    np.testing.assert_allclose(pace.rates, one_cycle(400), rtol=1e-5)
    assert pace.steps == 400 and detector.details_["epochs"] == 8.0
    assert [step for step, _ in pace.history] == list(range(50, 401, 50))


@pytest.mark.parametrize("n", [3, 99])
def test_the_cycle_is_as_long_as_the_training(fours, n):
    """Also where the last batch of an epoch is not full: then steps are not samples / 16."""
    _, pace = trained(fours, 16 * 40, n=n)
    steps = round(16 * 40 / (n * 8) * math.ceil(n * 8 / 16))
    assert (pace.steps, pace.rates[-1]) == (steps, pytest.approx(one_cycle(steps)[-1], rel=1e-5))


def test_a_pace_serves_again(fours):
    _, pace = trained(fours, 16 * 60)
    first = pace.rates.copy()
    _, pace = trained(fours, 16 * 60, pace=pace)
    assert pace.rates == first * 2 and pace.steps == 60


def test_training_ends_with_the_rate_at_0_where_they_no_longer_are(fours, monkeypatch):
    values = iter([-2.0, -1.5, -1.0, *[-1.2] * 1000])
    monkeypatch.setattr("models.pace.log_softmax", lambda z, axis: np.full(z.shape, next(values)))
    detector, pace = trained(fours, 16 * 4000)
    assert detector.record_["training_samples"] == 16 * pace.steps
    # five looks without improvement, after the third
    assert pace.cooled_from == 8 * CHECK_STEPS
    assert pace.steps == pytest.approx((1 + COOL_DOWN) * pace.cooled_from, abs=1)
    assert pace.expected[5:400:100] == [4000] * 4 and set(pace.expected[400:]) == {520}
    cycle = one_cycle(4000)[: pace.steps]
    np.testing.assert_allclose(pace.rates[:400], cycle[:400], rtol=1e-5)
    fall = 1 - np.arange(pace.steps - 400) / (COOL_DOWN * 400)
    np.testing.assert_allclose(pace.rates[400:], cycle[400:] * fall, rtol=1e-4)


def test_the_steps_are_those_of_kerass_own_schedule(fours, monkeypatch):
    """The rate reaches the optimiser, and looking at the held-out images changes nothing."""
    better = iter(range(1000))
    monkeypatch.setattr("models.pace.log_softmax", lambda z, axis: np.full(z.shape, next(better)))
    paced, pace = trained(fours, 16 * 120)
    assert len(pace.history) == 2
    other = TransformationDetector(**SMALL | {"schedule": "one_cycle"}, samples=16 * 120)
    other.fit(fours[:100])
    barely = {"learning_rate": 1e-9, "schedule": "constant"}
    start = TransformationDetector(**SMALL | barely, samples=16).fit(fours[:100])
    for ours, theirs, first in zip(*map(weights, (paced, other, start)), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-3 * np.abs(theirs - first).max())


def weights(detector):
    return detector.network_.get_weights()


def stopped_at(step, monkeypatch, fours, samples, **how):
    """A training that ends before that step, with the checkpoint that it has by then."""

    class Stop(Exception):
        pass

    def stop(self, batch, logs=None):
        if self.steps == step:
            raise Stop
        Pace.on_train_batch_begin(self, batch, logs)

    with monkeypatch.context() as patch:
        patch.setattr(Watched, "on_train_batch_begin", stop)
        with pytest.raises(Stop):
            trained(fours, samples, **how)


def test_a_training_that_goes_on_cools_down_as_if_it_had_not_stopped(fours, monkeypatch, tmp_path):
    monkeypatch.setattr("utils.training.LEAST_STEPS", 50)  # from one checkpoint to the next
    monkeypatch.setattr("models.pace.log_softmax", lambda z, axis: np.zeros(z.shape))
    _, unbroken = trained(fours, 16 * 4000)
    path = tmp_path / "a.checkpoint.keras"
    assert unbroken.cooled_from < 350 < unbroken.steps
    stopped_at(350, monkeypatch, fours, 16 * 4000, checkpoint=path)
    _, resumed = trained(fours, 16 * 4000, checkpoint=path)
    assert resumed.cooled_from == unbroken.cooled_from and resumed.history == unbroken.history
    assert resumed.steps == unbroken.steps and resumed.rates == unbroken.rates[350:]
    # stopped while it scored: there is nothing more to train
    finished, again = trained(fours, 16 * 4000, checkpoint=path)
    assert again.rates == []
    assert finished.record_["training_samples"] == 16 * unbroken.steps


def test_a_training_that_had_ended_says_so(fours, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("models.pace.log_softmax", lambda z, axis: np.zeros(z.shape))
    monkeypatch.setitem(SMALL, "verbose", 1)
    path = tmp_path / "a.checkpoint.keras"
    trained(fours, 16 * 4000, checkpoint=path)
    assert "had ended" not in capsys.readouterr().out
    trained(fours, 16 * 4000, checkpoint=path, minutes=1000)
    assert "its training had ended; to train for longer, delete it" in capsys.readouterr().out


def test_minutes_that_scoring_takes_alone_are_warned_of(fours, capsys):
    _, pace = trained(fours, 16 * 4000, minutes=1, step_seconds=4.0)
    assert pace.steps < 15
    assert "warning: scoring takes 1" in capsys.readouterr().out


def test_within_minutes_too(fours, monkeypatch, tmp_path):
    monkeypatch.setattr("utils.training.LEAST_STEPS", 50)
    monkeypatch.setattr("models.pace.log_softmax", lambda z, axis: np.zeros(z.shape))
    how = {"minutes": 1000, "checkpoint": tmp_path / "a.checkpoint.keras"}
    stopped_at(350, monkeypatch, fours, 16 * 4000, **how)
    _, resumed = trained(fours, 16 * 4000, **how)
    assert resumed.cooled_from == 300 and resumed.steps == 390
    assert np.diff(resumed.rates).max() < 0


@pytest.mark.parametrize("augmentation", ["none", "views"])
def test_a_look_measures_what_was_truly_done(fours, monkeypatch, augmentation):
    """On the images as they are, though training sees views of them."""
    monkeypatch.setitem(SMALL, "augmentation", augmentation)
    detector, pace = trained(fours, 16 * 50)
    ((step, value),) = pace.history
    images, t = pace.pairs
    moved = detector.transformer_.transform_batch(fours[100:][images], t)
    logits = detector.network_.predict(moved.astype("f4") / 127.5 - 1, verbose=0)
    log_p = log_softmax(logits, axis=-1)
    assert step == 50 and value == pytest.approx(log_p[np.arange(PAIRS), t].mean(), rel=1e-3)


def test_minutes_end_it_in_time_and_the_length_is_said(fours, capsys):
    detector, pace = trained(fours, 16 * 4000, minutes=10, step_seconds=4.0)
    alpha = detector.scoring_passes(100, 21) / (3 * 16) * 4.0
    assert pace.now == pytest.approx(600 - alpha, abs=5)
    assert pace.expected[5:] == pytest.approx([pace.steps] * (pace.steps - 5), abs=3)
    assert pace.rates[-1] < 1e-3 * max(pace.rates) and max(pace.rates) == pytest.approx(4e-3, 0.05)
    (said,) = capsys.readouterr().out.splitlines()
    assert "about 8 minutes at 4 images/s" in said


def test_another_schedule_is_left_alone(fours, capsys):
    detector = TransformationDetector(**SMALL | {"schedule": "one_cycle"}, samples=16 * 120)
    pace = Watched(fours[100:], step_seconds=1.0)
    detector.fit(fours[:100], callbacks=[pace])
    assert pace.steps == 120 and not pace.history
    (said,) = capsys.readouterr().out.splitlines()
    assert "training takes about" in said and "less if" not in said


def test_without_a_pace_the_schedule_is_refused(fours):
    with pytest.raises(ValueError, match=r"'paced' needs models\.pace\.Pace as a callback"):
        TransformationDetector(**SMALL, samples=16).fit(fours[:100])


def test_minutes_count_what_was_trained_before(fours, monkeypatch, tmp_path):
    monkeypatch.setattr("utils.training.LEAST_STEPS", 50)
    monkeypatch.setattr("models.pace.log_softmax", lambda z, axis: np.zeros(z.shape))
    how = {"minutes": 10, "step_seconds": 4.0}
    _, unbroken = trained(fours, 16 * 4000, **how)
    how["checkpoint"] = tmp_path / "a.checkpoint.keras"
    stopped_at(100, monkeypatch, fours, 16 * 4000, **how)
    took = property(lambda _: 400.0, mock.Mock())
    monkeypatch.setattr(Checkpoint, "seconds", took, raising=False)
    _, resumed = trained(fours, 16 * 4000, **how)
    assert resumed.now == pytest.approx(unbroken.now - 400, abs=12)

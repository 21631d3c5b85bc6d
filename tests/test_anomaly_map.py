from types import SimpleNamespace

import numpy as np
import pytest
from scipy.special import log_softmax, logsumexp

from models.anomaly_map import _places, anomaly_map
from models.transformation_detector import TransformationDetector
from transformations import TransformationSet
from utils.images import boxes
from utils.report import RED, heat, overlaid


@pytest.fixture(scope="module")
def fours(digits):
    return digits.x_train[digits.y_train == 4][:, ::2, ::2]


@pytest.mark.usefixtures("small_network")
@pytest.mark.parametrize("score_name", ["dirichlet", "simplified", "rotation"])
def test_the_map_is_the_mean_rise_where_a_pixel_is_covered(fours, score_name):
    """Against loops over the places of a patch, and the network's own outputs."""
    pairs = [(f, t, 0, k) for f in (False, True) for t in (0, 2) for k in range(4)]
    detector = TransformationDetector(
        TransformationSet(pairs), score_name=score_name, samples=640, verbose=0
    )
    detector.fit(fours[:100])
    chosen, mean = fours[100:103], np.rint(fours[:100].mean(0)).astype(np.uint8)
    total, count = np.zeros((3, 8, 8)), np.zeros((8, 8))
    for top in range(7):  # patches of 2x2 pixels
        for left in range(7):
            place = ..., slice(top, top + 2), slice(left, left + 2)
            covered = chosen.copy()
            covered[(*place, slice(None))] = mean[(*place[1:], slice(None))]
            rise = score(detector, covered) - score(detector, chosen)
            total[place] += rise[:, None, None]
            count[place] += 1
    found = anomaly_map(detector, chosen)
    assert found.shape == (3, 8, 8) and found.dtype == np.float64
    expected = total / count
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def score(detector, x):
    """The score of bytes under the rotations alone, by the network itself and SciPy."""
    x = x.astype("f4") / 127.5 - 1
    moved = [np.rot90(x, k, axes=(1, 2)) for k in range(4)]
    log_p = np.stack([log_softmax(np.asarray(detector.network_(m)), axis=-1) for m in moved], 1)
    if detector.score_name == "simplified":
        return np.exp(log_p[:, range(4), range(4)]).mean(1)
    alpha = detector.alpha_[:4]
    if detector.score_name == "rotation":
        log_p = np.stack([logsumexp(log_p[..., k::4], axis=-1) for k in range(4)], -1)
        alpha = detector.rotation_alpha_[:4]
    return ((alpha - 1) * log_p).sum((1, 2))


@pytest.mark.parametrize("shape", [(32, 32), (64, 64), (9, 13), (2, 5)])
def test_every_pixel_is_covered(shape):
    places = _places(*shape)
    assert places.any(0).all() and places.sum((1, 2)).std() == 0
    assert shape != (32, 32) or len(places) == 49


def test_a_model_without_a_mean_image_is_refused():
    with pytest.raises(ValueError, match="older version"):
        anomaly_map(SimpleNamespace(details_={}), np.zeros((1, 8, 8, 1), np.uint8))


def test_what_is_highest_is_most_opaque():
    picture = np.asarray(heat(np.array([[-5.0, 0.0], [1.0, 4.0]])))
    assert picture[..., 3].ravel().tolist() == [0, 0, 48, 190]
    assert (picture[..., :3] == RED).all()
    assert not np.asarray(heat(np.zeros((3, 3))))[..., 3].any()
    assert not np.asarray(heat(np.full((3, 3), -2.0)))[..., 3].any()


def test_the_map_lies_over_its_box_and_the_rest_is_dark():
    image = np.full((20, 50, 3), 200, np.uint8)
    anomalous = np.zeros((4, 4))
    anomalous[0, 0] = 1.0
    shown = np.asarray(overlaid(image, anomalous, (30.0, 0.0, 50.0, 20.0))).astype(int)
    assert shown.shape == image.shape
    assert (shown[:, :30] == 100).all() and (shown[15:, 45:] == 200).all()
    red = 200 - shown[..., 1]
    row, column = np.unravel_index(red[:, 30:].argmax(), (20, 20))
    assert row <= 5 and column <= 5 and red[:, 30:].max() > 90


@pytest.mark.parametrize("region", ["centre", "whole", "tiles"])
def test_the_map_is_as_large_as_its_box_however_narrow_the_image(region):
    """A box may lie at half pixels, and be a pixel wide."""
    for width, height in [(1, 16), (16, 1), (3, 8), (8, 3), (5, 5), (2, 33)]:
        image = np.full((height, width, 3), 200, np.uint8)
        for box in boxes(width, height, region):
            shown = np.asarray(overlaid(image, np.zeros((4, 4)), box))
            lit = np.argwhere(shown[..., 0] == 200)
            size = lit.max(0) - lit.min(0) + 1
            assert size.tolist() == pytest.approx([box[3] - box[1], box[2] - box[0]])
            assert len(lit) == size.prod() and (shown[shown != 200] == 100).all()

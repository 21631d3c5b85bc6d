import keras
import numpy as np

from models.layers import BatchNormalization


def test_batch_normalisation_equals_keras_own():
    rng = np.random.default_rng(0)
    x = rng.normal(2, 3, (16, 5, 5, 4)).astype("float32")
    ours, keras_own = (
        kind(momentum=0.9, epsilon=1e-5)
        for kind in (BatchNormalization, keras.layers.BatchNormalization)
    )
    for layer in (ours, keras_own):
        layer.build(x.shape)
        layer.gamma.assign([1, 2, 3, 4])
        layer.beta.assign([0, -1, 1, 2])

    def both(training):
        return (
            keras.ops.convert_to_numpy(each(x, training=training)) for each in (ours, keras_own)
        )

    np.testing.assert_allclose(*both(training=True), atol=1e-4)
    # the averaged variance is over n - 1 in one and over n in the other
    np.testing.assert_allclose(ours.moving_variance, keras_own.moving_variance, rtol=2.0 / 400)
    np.testing.assert_allclose(ours.moving_mean, keras_own.moving_mean, rtol=1e-4)
    keras_own.moving_variance.assign(ours.moving_variance)
    np.testing.assert_allclose(*both(training=False), atol=1e-4)
    ours.trainable = False
    keras_own.trainable = False
    np.testing.assert_allclose(*both(training=True), atol=1e-4)

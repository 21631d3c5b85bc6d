import keras
import numpy as np
import pytest

from utils.batches import batches, pair_batches, predict


def test_pair_batches_give_the_images_and_indices_of_the_pairs():
    x = np.arange(5 * 2 * 2, dtype=np.uint8).reshape(5, 2, 2, 1)
    pairs = np.random.default_rng(0).permutation(5 * 8).astype(np.int32)
    made = [
        [np.asarray(a) for a in (images, t, label)]
        for (images, t), label in map(pair_batches(x, pairs, 8, batch_size=16), range(3))
    ]
    assert [len(t) for _, t, _ in made] == [16, 16, 8]
    images, t, labels = (np.concatenate(column) for column in zip(*made, strict=True))
    np.testing.assert_array_equal(t, pairs % 8)
    np.testing.assert_array_equal(labels, t)
    np.testing.assert_array_equal(images, x[pairs // 8])
    assert images.dtype == np.uint8


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="tf.data is TensorFlow's")
def test_nothing_is_tuned_by_a_thread_that_the_end_of_fit_would_wait_for():
    """Neither in what is made here, nor in what Keras makes of it for `fit`."""
    made = batches(3, lambda i: (np.full((2, 1), i, np.float32), np.zeros((2, 1), np.float32)))
    assert made.options().autotune.enabled is False
    assert int(made.cardinality()) == 3
    adapter = keras.src.trainers.data_adapters.get_data_adapter(made, None)
    assert adapter.get_tf_dataset().options().autotune.enabled is False


def test_predict_is_the_model_on_all_images_in_their_order():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Rescaling(3.0)])
    x = np.arange(22, dtype=np.float32).reshape(11, 2)
    np.testing.assert_allclose(predict(model, x, 4), 3 * x)
    np.testing.assert_allclose(predict(model, x, 4, lambda part: part + 1), 3 * (x + 1))

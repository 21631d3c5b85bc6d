import keras
import numpy as np
import pytest
from scipy import ndimage

from transformations import SimpleTransformer, TransformationSet, Transformer, TransformLayer


def through_numpy(transformer, x, t):
    return transformer.transform_batch(x, t)


def through_the_layer(transformer, x, t):
    layer = TransformLayer(transformer.transformations)
    return keras.ops.convert_to_numpy(layer([x, np.asarray(t)]))


@pytest.mark.parametrize("apply", [through_numpy, through_the_layer])
@pytest.mark.parametrize(
    "name, transformer", [("full32", Transformer()), ("simple32", SimpleTransformer())]
)
def test_equals_the_golden_images(golden, apply, name, transformer):
    for image, expected in zip(golden["x32"], golden[name], strict=True):
        t = np.arange(transformer.n_transforms)
        images = np.repeat(image[None], len(t), axis=0)
        np.testing.assert_array_equal(apply(transformer, images, t), expected)


def test_equals_the_golden_images_at_64_pixels(golden):
    images = np.repeat(golden["x64"][None], 72, axis=0)
    moved = Transformer(16, 16).transform_batch(images, np.arange(72))
    np.testing.assert_array_equal(moved, golden["full64"])


@pytest.mark.parametrize("tx, ty, k", [(3, -2, 0), (-5, 0, 1), (0, 4, 3)])
def test_translation_and_rotation_as_scipy_does_them(tx, ty, k):
    image = np.random.default_rng(0).random((6, 6))
    moved = TransformationSet([(False, tx, ty, k)]).transform_batch(image[None, ..., None], [0])
    shifted = ndimage.shift(image, (-tx, -ty), order=0, mode="reflect")
    expected = np.rot90(shifted, k)
    np.testing.assert_allclose(moved[0, ..., 0], expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float16, np.float32, np.float64, bool])
def test_keeps_dtype_and_values_of_a_mixed_batch(dtype):
    x = (np.random.default_rng(1).random((5, 8, 8, 2)) * 200).astype(dtype)
    transformer = Transformer(2, 2)
    t = [3, 71, 0, 40, 3]
    moved = transformer.transform_batch(x, t)
    assert moved.dtype == x.dtype and moved.shape == x.shape
    for image, index, one in zip(x, t, moved, strict=True):
        np.testing.assert_array_equal(one, transformer.transform_batch(image[None], [index])[0])
    np.testing.assert_array_equal(moved[2], x[2])


def test_order_and_names():
    transformer = Transformer()
    assert transformer.n_transforms == len(transformer.names) == len(set(transformer.names)) == 72
    assert transformer.names[0] == "identity"
    assert transformer.names[1] == "rotate 90"
    assert transformer.names[4] == "translate (+0, -8)"
    assert transformer.names[-1] == "flip, translate (+8, +8), rotate 270"
    assert SimpleTransformer().names[4:6] == ["flip", "flip, rotate 90"]


def test_custom_sets_of_section_6():
    x = np.random.default_rng(2).integers(0, 256, (2, 28, 28, 1), dtype=np.uint8)
    flip = TransformationSet([(False, 0, 0, 0), (True, 0, 0, 0)])
    np.testing.assert_array_equal(flip.transform_batch(x, [0, 1])[1], x[1, :, ::-1])
    move = TransformationSet([(False, 0, 0, 0), (False, 0, 7, 0)])
    np.testing.assert_array_equal(move.transform_batch(x, [0, 1])[1, :, :21], x[1, :, 7:])


def test_flips_and_translations_take_images_that_are_not_square():
    x = np.arange(12).reshape(1, 3, 4, 1)
    moved = TransformationSet([(True, 1, 0, 0)]).transform_batch(x, [0])
    np.testing.assert_array_equal(moved[0, ..., 0], [[7, 6, 5, 4], [11, 10, 9, 8], [11, 10, 9, 8]])


@pytest.mark.parametrize(
    "transformer, shape, t, message",
    [
        (SimpleTransformer(), (1, 4, 6, 1), [0], "square images, got 4x6"),
        (Transformer(8, 8), (1, 8, 8, 3), [0], "larger images than 8x8"),
        (Transformer(8, 8), (1, 32, 32, 3), [72], "index 72 is outside 0..71"),
        (Transformer(8, 8), (1, 32, 32, 3), [-1], "index -1 is outside"),
        (Transformer(8, 8), (2, 32, 32, 3), [1], "expected 2 whole-number"),
        (Transformer(8, 8), (1, 32, 32, 3), [1.0], "whole-number"),
        (Transformer(8, 8), (32, 32, 3), [1], "expected images of shape"),
    ],
)
def test_bad_input_is_named(transformer, shape, t, message):
    with pytest.raises(ValueError, match=message):
        transformer.transform_batch(np.zeros(shape, np.uint8), t)


@pytest.mark.parametrize("bad", [[], [(False, 0, 0, 4)], [(False, 0.5, 0, 0)], [(2, 0, 0, 0)]])
def test_bad_sets_are_refused(bad):
    with pytest.raises(ValueError):
        TransformationSet(bad)


def test_layer_refuses_indices_and_images_it_cannot_take():
    layer = TransformLayer(Transformer(2, 2).transformations)
    with pytest.raises(ValueError, match="index 72 is outside"):
        layer([np.zeros((1, 8, 8, 1), np.uint8), np.array([72])])
    with pytest.raises(ValueError, match="square"):
        TransformLayer(Transformer(2, 2).transformations)([np.zeros((1, 8, 6, 1)), np.array([0])])


def test_layer_survives_its_configuration():
    layer = TransformLayer(Transformer(2, 3).transformations)
    again = TransformLayer.from_config(layer.get_config())
    assert again.transformations.transformations == layer.transformations.transformations

import keras
import numpy as np
import pytest

from models.wide_residual_network import create_wide_residual_network


def count(variables):
    return sum(int(np.prod(v.shape)) for v in variables)


def test_parameter_counts(golden):
    for depth, widen, side, channels, classes, trainable, total in golden["wrn_params"].tolist():
        model = create_wide_residual_network((side, side, channels), classes, depth, widen)
        assert count(model.trainable_variables) == trainable
        assert model.count_params() == total


def test_two_heads_read_the_same_features():
    heads = {"categories": 10, "transformations": 72}
    two = create_wide_residual_network((32, 32, 3), heads, 10, 4, final_activation=None, seed=3)
    one = create_wide_residual_network((32, 32, 3), 10, 10, 4, final_activation=None, seed=3)
    assert count(two.trainable_variables) == count(one.trainable_variables) + 72 * (256 + 1)
    assert len(two.losses) == len(two.trainable_variables)
    x = np.random.default_rng(0).uniform(-1, 1, (3, 32, 32, 3))
    outputs = two(x)
    assert {name: tuple(v.shape) for name, v in outputs.items()} == {
        "categories": (3, 10),
        "transformations": (3, 72),
    }
    # equal seeds: the first head is the one that the other network has
    np.testing.assert_allclose(outputs["categories"], one(x), atol=1e-6)
    softmax = create_wide_residual_network((8, 8, 1), heads, 10)(np.zeros((2, 8, 8, 1)))
    for probabilities in softmax.values():
        np.testing.assert_allclose(keras.ops.sum(probabilities, axis=1), 1, rtol=1e-5)


def test_every_kernel_gamma_beta_and_bias_is_penalised():
    model = create_wide_residual_network((32, 32, 1), 8, 10)
    squares = sum(float(keras.ops.sum(keras.ops.square(v))) for v in model.trainable_variables)
    assert float(sum(model.losses)) == pytest.approx(0.00025 * squares, rel=1e-5)
    assert len(model.losses) == len(model.trainable_variables)
    assert not create_wide_residual_network((32, 32, 1), 8, 10, weight_decay=0).losses


def test_initial_weights_have_the_papers_distribution():
    model = create_wide_residual_network((32, 32, 3), 72, 10, 4, seed=3)
    kernels = [v for v in model.trainable_variables if len(v.shape) == 4]
    assert len(kernels) == 10
    for kernel in kernels:
        values = keras.ops.convert_to_numpy(kernel).ravel()
        std = np.sqrt(2 / np.prod(kernel.shape[:3]))
        assert abs(values.std() / std - 1) < 5 / np.sqrt(2 * values.size)
        if values.size > 30_000:
            assert abs(values).max() > 3 * std  # a truncated normal would end at 2
    dense = keras.ops.convert_to_numpy(model.get_layer("predictions").kernel)
    bound = 1 / np.sqrt(dense.shape[0])
    assert 0.99 * bound < abs(dense).max() <= bound
    assert dense.std() == pytest.approx(bound / np.sqrt(3), rel=0.02)
    assert not keras.ops.convert_to_numpy(model.get_layer("predictions").bias).any()


def test_equal_seeds_give_equal_weights_and_no_two_equal_kernels():
    one, two, other = (
        create_wide_residual_network((16, 16, 1), 8, 10, seed=seed).get_weights()
        for seed in (5, 5, 6)
    )
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    shapes = [kernel for kernel in one if kernel.shape == (3, 3, 32, 32)]
    assert not any(np.array_equal(shapes[0], kernel) for kernel in shapes[1:])


def test_blocks_follow_the_paper():
    """The forward pass at inference, written out again for a network of one block a group."""
    model = create_wide_residual_network((32, 32, 3), 5, 10, 1, seed=1)
    rng = np.random.default_rng(0)
    weights = [
        rng.normal(0.5, 0.2, w.shape).astype("float32") ** 2 / 3 for w in model.get_weights()
    ]
    model.set_weights(weights)
    by_kind = {"conv": [], "bn": []}
    for layer in model.layers:
        if isinstance(layer, keras.layers.Conv2D):
            by_kind["conv"].append(layer)
        elif isinstance(layer, keras.layers.BatchNormalization):
            by_kind["bn"].append(layer)

    def conv(x, filters, size, stride):
        layer = next(
            each
            for each in by_kind["conv"]
            if each.kernel.shape == (size, size, x.shape[-1], filters)
        )
        by_kind["conv"].remove(layer)
        return keras.ops.conv(x, layer.kernel, strides=stride, padding="same")

    def bn_relu(x):
        layer = by_kind["bn"].pop(0)
        scale = layer.gamma / keras.ops.sqrt(layer.moving_variance + 1e-5)
        return keras.ops.relu((x - layer.moving_mean) * scale + layer.beta)

    x = rng.normal(size=(2, 32, 32, 3)).astype("float32")
    y = conv(keras.ops.convert_to_tensor(x), 16, 3, 1)
    for filters, stride in ((16, 1), (32, 2), (64, 2)):
        first = bn_relu(y)
        shortcut = y if y.shape[-1] == filters else conv(first, filters, 1, stride)
        second = bn_relu(conv(first, filters, 3, stride))
        y = conv(second, filters, 3, 1) + shortcut
    y = keras.ops.mean(bn_relu(y), axis=(1, 2))
    head = model.get_layer("predictions")
    expected = keras.ops.softmax(keras.ops.matmul(y, head.kernel) + head.bias)
    assert not by_kind["conv"] and not by_kind["bn"]
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(model(x, training=False)),
        keras.ops.convert_to_numpy(expected),
        rtol=2e-4,
    )


def test_64_pixels_leave_a_2x2_map_that_is_flattened():
    model = create_wide_residual_network((64, 64, 3), 72, 10, 1)
    assert model.get_layer("predictions").kernel.shape == (4 * 64, 72)


def test_the_head_stays_in_float32():
    model = create_wide_residual_network((16, 16, 1), 8, 10, dtype="mixed_bfloat16")
    assert model.get_layer("predictions").compute_dtype == "float32"
    assert model.layers[1].compute_dtype == "bfloat16"
    assert all(v.dtype == "float32" for v in model.trainable_variables)


@pytest.mark.parametrize("depth", [4, 9, 11, 0])
def test_depth_must_be_6n_plus_4(depth):
    with pytest.raises(ValueError, match=f"depth {depth}"):
        create_wide_residual_network((32, 32, 3), 72, depth)


def test_tiny_images_are_refused():
    with pytest.raises(ValueError, match="smaller than 4x4"):
        create_wide_residual_network((3, 3, 1), 8, 10)


def test_hidden_layers_lie_between_features_and_head():
    network = create_wide_residual_network((16, 16, 3), 4, 10, 1, hidden_layers=2, seed=0)
    plain = create_wide_residual_network((16, 16, 3), 4, 10, 1, seed=0)
    added = 64 * 512 + 512 * 512 + 2 * 4 * 512 + (512 - 64) * 4
    assert network.count_params() - plain.count_params() == added
    kinds = [type(layer).__name__ for layer in network.layers]
    position = network.layers.index(network.get_layer("features"))
    hidden = ["Dense", "BatchNormalization", "ReLU"]
    assert kinds[position:] == ["Flatten", *hidden, *hidden, "Dense"]
    assert network.layers[-1].name == "predictions"
    body, plain_body = (
        keras.Model(each.input, each.get_layer("features").output) for each in (network, plain)
    )
    for one, other in zip(body.get_weights(), plain_body.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)

"""A trained detector as an ONNX graph, from images to scores, for programs without Keras.

It is built from the network's layers, of which there are few kinds, and holds transformations
(section 4.1), network, score (section 4.2) and the p-value of a calibrated detector.
"""

import os

import numpy as np

from utils.files import replacing

OPSET, IR_VERSION = 17, 8
"""Old ones, which every ONNX Runtime since 1.12 reads."""


def write_onnx(path: str | os.PathLike, detector) -> None:
    """Write a fitted detector's graph, whole or not at all.

    Its input "images" is (n, h, w, c) of training's dtype, of any n. Its outputs are "score",
    float64 (n,), and, where the detector has a threshold, "p_value", float64 (n,). Logits are
    computed in float32.

    Raises ValueError where the package onnx is missing, and for layers of another kind than
    `models.wide_residual_network` has.
    """
    graph = _Graph()
    height, width, channels = detector.image_shape_
    maps = detector.transformer_.index_maps(height, width)[detector.scored_indices_]
    pixels = graph.add("Reshape", "images", [0, height * width, channels])
    pixels = graph.add("Gather", pixels, maps.ravel(), axis=1)
    images = graph.add("Reshape", pixels, [-1, height, width, channels])
    if detector.image_dtype_ == "uint8":  # to [-1, 1], as scale_images does
        images = graph.add("Cast", images, to=graph.onnx.TensorProto.FLOAT)
        images = graph.add("Sub", graph.add("Mul", images, np.float32(2 / 255)), np.float32(1))
    logits, features = _logits_and_features(graph, detector.network_, images)
    if detector.settings_.score_name == "density":
        outputs = {"score": _density(graph, detector.density_, features)}
    else:
        log_p = graph.add("LogSoftmax", logits, axis=-1)
        log_p = graph.add("Cast", log_p, to=graph.onnx.TensorProto.DOUBLE)
        log_p = graph.add("Reshape", log_p, [-1, len(maps), detector.transformer_.n_transforms])
        outputs = {"score": _score(graph, detector, log_p)}
    if hasattr(detector, "calibration_scores_"):  # as utils.threshold.p_values
        held_out = detector.calibration_scores_
        column = graph.add("Unsqueeze", outputs["score"], [1])
        at_most = graph.add("LessOrEqual", held_out[None], column)
        ones = graph.add("Cast", at_most, to=graph.onnx.TensorProto.DOUBLE)
        count = graph.add("Add", graph.add("ReduceSum", ones, [1], keepdims=0), 1.0)
        outputs["p_value"] = graph.add("Div", count, 1.0 + len(held_out))
    model = graph.model(detector, outputs)
    with replacing(path) as partial:
        partial.write_bytes(model.SerializeToString())


def _score(graph, detector, log_p):
    """The detector's own score of log y (n, m, k), as `TransformationDetector.scores`."""
    name, scored = detector.settings_.score_name, detector.scored_indices_
    if name == "simplified":
        log_p, weights = graph.add("Exp", log_p), np.zeros(detector.alpha_.shape)
        weights[np.arange(len(scored)), scored] = 1 / len(scored)
    elif name == "rotation":
        weights, parts = detector.rotation_alpha_ - 1, []
        for turn in np.unique(detector._rotations_):
            of_turn = np.flatnonzero(detector._rotations_ == turn)
            part = graph.add("Gather", log_p, of_turn, axis=2)
            parts.append(graph.add("ReduceLogSumExp", part, axes=[2]))
        log_p = graph.add("Concat", *parts, axis=2)
    else:
        weights = detector.alpha_ - 1
    return graph.add("ReduceSum", graph.add("Mul", log_p, weights), [1, 2], keepdims=0)


def _density(graph, density, features):
    """`UnitDensity.score` of features (n * m, d)."""
    n, m, d = density.reference.shape
    double = graph.onnx.TensorProto.DOUBLE
    features = graph.add("Reshape", features, [-1, m, d])
    features, reference = (
        graph.add("LpNormalization", graph.add("Cast", each, to=double), axis=-1, p=2)
        for each in (features, density.reference.transpose(1, 0, 2))
    )
    parts = []
    for j, gamma in enumerate(density.gamma):
        one = graph.add("Gather", features, np.array(j), axis=1)
        others = graph.add("Transpose", graph.add("Gather", reference, np.array(j)), perm=[1, 0])
        cosine = graph.add("MatMul", one, others)
        exponent = graph.add("Mul", graph.add("Sub", cosine, 1.0), 2 * gamma)
        parts.append(graph.add("ReduceLogSumExp", exponent, axes=[1], keepdims=0))
    return graph.add("Sub", graph.add("Div", graph.add("Sum", *parts), float(m)), np.log(n))


def _logits_and_features(graph, network, images):
    """The logits and features, layer by layer, with channels first, which ONNX wants."""
    values = {}
    for layer in network.layers:
        kind = type(layer).__name__
        inputs = layer.input if isinstance(layer.input, list) else [layer.input]
        x = [values.get(id(each)) for each in inputs]
        weights = [np.asarray(each, np.float32) for each in layer.get_weights()]
        if kind == "InputLayer":
            y = graph.add("Transpose", images, perm=[0, 3, 1, 2])
        elif kind == "Conv2D" and not layer.use_bias:
            pad = "SAME_UPPER" if layer.padding == "same" else "VALID"
            kernel = weights[0].transpose(3, 2, 0, 1)
            y = graph.add("Conv", *x, kernel, strides=layer.strides, auto_pad=pad)
        elif kind == "BatchNormalization":  # gamma, beta, mean, variance
            y = graph.add("BatchNormalization", *x, *weights, epsilon=layer.epsilon)
        elif kind == "AveragePooling2D":
            y = graph.add("AveragePool", *x, kernel_shape=layer.pool_size, strides=layer.strides)
        elif kind == "Flatten":
            y = graph.add("Flatten", graph.add("Transpose", *x, perm=[0, 2, 3, 1]))
        elif kind == "Dense":
            y = graph.add("Gemm", *x, *weights)
        elif kind in ("ReLU", "Add"):
            y = graph.add(kind.replace("ReLU", "Relu"), *x)
        elif kind == "Dropout":
            (y,) = x
        else:
            raise ValueError(f"layer {layer.name} is of kind {kind}, which cannot be exported")
        values[id(layer.output)] = y
    return y, values[id(network.get_layer("features").output)]


class _Graph:
    """Nodes and constants, each with a name."""

    def __init__(self):
        try:
            import onnx
        except ImportError as error:
            raise ValueError("export needs the package onnx: pip install onnx") from error
        self.onnx, self.nodes, self.constants = onnx, [], []

    def add(self, op, *inputs, name=None, **attributes):
        """A node on inputs, each a name or a constant array; returns its name."""
        names = [each if isinstance(each, str) else self._constant(each) for each in inputs]
        name = name or f"{op}_{len(self.nodes)}"
        self.nodes.append(self.onnx.helper.make_node(op, names, [name], **attributes))
        return name

    def _constant(self, array):
        name = f"constant_{len(self.constants)}"
        self.constants.append(self.onnx.numpy_helper.from_array(np.asarray(array), name))
        return name

    def model(self, detector, outputs):
        """The checked model; how images are to be read is in its metadata."""
        helper, types = self.onnx.helper, self.onnx.TensorProto
        dtype = types.UINT8 if detector.image_dtype_ == "uint8" else types.FLOAT
        images = helper.make_tensor_value_info("images", dtype, ["n", *detector.image_shape_])
        for name, value in outputs.items():
            self.add("Identity", value, name=name)
        made = [helper.make_tensor_value_info(name, types.DOUBLE, ["n"]) for name in outputs]
        graph = helper.make_graph(self.nodes, "detector", [images], made, self.constants)
        opset = helper.make_opsetid("", OPSET)
        model = helper.make_model(graph, ir_version=IR_VERSION, opset_imports=[opset])
        details = {key: str(detector.details_.get(key)) for key in ("region", "white")}
        helper.set_model_props(model, details)
        self.onnx.checker.check_model(model, full_check=True)
        return model

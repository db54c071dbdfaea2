"""Keras models as tf2onnx writes them. Run in an environment that has TensorFlow and nothing of ours:

python tensorflow_models.py NAME OUT.onnx
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any


def plain() -> Any:
    """Convolutions, batch norms, linear layers."""
    from tensorflow.keras import Sequential, layers

    return Sequential(
        [
            layers.Input((32, 32, 3)),
            layers.Conv2D(24, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(32, 3),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.SeparableConv2D(48, 3),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dense(10, activation="softmax"),
        ]
    )


def mobile() -> Any:
    """MobileNet 2 of keras.applications."""
    from tensorflow.keras import applications

    return applications.MobileNetV2((64, 64, 3), alpha=0.35, weights=None, classes=10)


def residual() -> Any:
    """ResNet 50 of keras.applications."""
    from tensorflow.keras import applications

    return applications.ResNet50(weights=None, input_shape=(64, 64, 3), classes=10)


def dense() -> Any:
    """DenseNet 121 of keras.applications."""
    from tensorflow.keras import applications

    return applications.DenseNet121(weights=None, input_shape=(64, 64, 3), classes=10)


def efficient() -> Any:
    """EfficientNet B0 of keras.applications: squeeze and excitation, padded strides."""
    from tensorflow.keras import applications

    return applications.EfficientNetB0(weights=None, input_shape=(64, 64, 3), classes=10)


def up_and_down() -> Any:
    """A U-Net with transposed convolutions."""
    from tensorflow.keras import Model, layers

    image = layers.Input((32, 32, 3))
    one = layers.Conv2D(16, 3, padding="same", activation="relu")(image)
    two = layers.Conv2D(32, 3, strides=2, padding="same", activation="relu")(one)
    up = layers.Conv2DTranspose(16, 2, strides=2, padding="same")(two)
    joined = layers.Concatenate()([up, one])
    made = layers.Conv2D(2, 1)(layers.Conv2D(16, 3, padding="same", activation="relu")(joined))
    return Model(image, made)


def recurrent() -> Any:
    """A bidirectional LSTM, and another one along its states."""
    from tensorflow.keras import Sequential, layers

    return Sequential(
        [
            layers.Input((12, 8)),
            layers.Bidirectional(layers.LSTM(24, return_sequences=True)),
            layers.LSTM(32),
            layers.Dense(5),
        ]
    )


def gated() -> Any:
    """A GRU."""
    from tensorflow.keras import Sequential, layers

    return Sequential([layers.Input((12, 8)), layers.GRU(32), layers.Dense(5)])


def attention() -> Any:
    """A transformer block with MultiHeadAttention."""
    from tensorflow.keras import Model, activations, layers

    steps = layers.Input((16, 12))
    x = layers.Dense(32)(steps)
    y = layers.LayerNormalization()(x)
    x = layers.Add()([x, layers.MultiHeadAttention(4, 8)(y, y)])
    # The exact gelu becomes an operator `Erfc`, which ONNX does not have.
    y = layers.Dense(64, activation=lambda value: activations.gelu(value, approximate=True))(
        layers.LayerNormalization()(x)
    )
    x = layers.Add()([x, layers.Dense(32)(y)])
    return Model(steps, layers.Dense(5)(layers.GlobalAveragePooling1D()(x)))


MODELS = {
    "Keras, convolutions": plain,
    "Keras, MobileNet 2": mobile,
    "Keras, ResNet 50": residual,
    "Keras, DenseNet 121": dense,
    "Keras, EfficientNet B0": efficient,
    "Keras, U-Net": up_and_down,
    "Keras, LSTM": recurrent,
    "Keras, GRU": gated,
    "Keras, attention": attention,
}


def listed() -> Iterator[tuple[Any, ...]]:
    """Name and what builds it; the file says what the inputs are."""
    for name, build in MODELS.items():
        yield name, build, ()


def main() -> None:
    import numpy as np
    import tensorflow
    import tf2onnx

    tensorflow.keras.utils.set_random_seed(0)
    model = MODELS[sys.argv[1]]()
    numbers = np.random.default_rng(0)
    for weight in model.weights:
        array = np.asarray(weight)
        if array.size and array.dtype.kind == "f" and (array == array.flat[0]).all():
            weight.assign(array + numbers.uniform(0, 0.3, array.shape).astype(array.dtype))
    shape = [
        tensorflow.TensorSpec([None, *one.shape[1:]], one.dtype, name=f"input{place}")
        for place, one in enumerate(model.inputs)
    ]
    called = tensorflow.function(
        lambda *given: model(list(given) if len(given) > 1 else given[0], training=False),
        input_signature=shape,
    )
    tf2onnx.convert.from_function(called, input_signature=shape, opset=17, output_path=sys.argv[2])


if __name__ == "__main__":
    main()

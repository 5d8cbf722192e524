"""Ten scripts as a Keras user writes them: each takes the module, Keras's or ours, and compiles a model.

`TRAINED` says on which data each is fitted, and for how long.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def simple_convnet(keras: Any) -> Any:
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input(shape=(8, 8, 1)),
            layers.Conv2D(16, kernel_size=(3, 3), activation="relu"),
            layers.MaxPooling2D(pool_size=(2, 2)),
            layers.Conv2D(32, kernel_size=(3, 3), activation="relu"),
            layers.Flatten(),
            layers.Dropout(0.3),
            layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile(loss="categorical_crossentropy", optimizer="adam", metrics=["accuracy"])
    return model


def deep_convnet(keras: Any) -> Any:
    layers = keras.layers
    model = keras.models.Sequential()
    model.add(keras.Input(shape=(8, 8, 1)))
    model.add(layers.Conv2D(16, (3, 3), padding="same"))
    model.add(layers.BatchNormalization())
    model.add(layers.Activation("relu"))
    model.add(layers.Conv2D(16, (3, 3), padding="same", strides=2, use_bias=False))
    model.add(layers.BatchNormalization())
    model.add(layers.ReLU())
    model.add(layers.GlobalAveragePooling2D())
    model.add(layers.Dense(10))
    model.compile(
        optimizer=keras.optimizers.Adam(learning_rate=0.01),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def multilayer_perceptron(keras: Any) -> Any:
    model = keras.Sequential(
        [
            keras.Input(shape=(8, 8, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(64, activation="relu", kernel_initializer="he_normal"),
            keras.layers.Dense(32, activation="tanh"),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile("rmsprop", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def binary_classifier(keras: Any) -> Any:
    model = keras.Sequential()
    model.add(keras.Input(shape=(30,)))
    model.add(keras.layers.Dense(16, activation="relu"))
    model.add(keras.layers.Dense(1, activation="sigmoid"))
    model.compile(optimizer="adam", loss="binary_crossentropy", metrics=["accuracy"])
    return model


def regression(keras: Any) -> Any:
    model = keras.Sequential(
        [
            keras.Input(shape=(10,)),
            keras.layers.Dense(32, activation="relu"),
            keras.layers.Dense(32, activation="relu"),
            keras.layers.Dense(1),
        ]
    )
    model.compile(optimizer=keras.optimizers.RMSprop(0.001), loss="mse", metrics=["mae"])
    return model


def separable(keras: Any) -> Any:
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input(shape=(8, 8, 1)),
            layers.ZeroPadding2D(1),
            layers.Conv2D(8, 3, activation="relu"),
            layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2, activation="relu"),
            layers.SeparableConv2D(24, 3, padding="same", activation="elu"),
            layers.AveragePooling2D((2, 2)),
            layers.Flatten(),
            layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile(optimizer="adamw", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def sequence_lstm(keras: Any) -> Any:
    """Rows of an image as a sequence."""
    model = keras.Sequential(
        [
            keras.Input(shape=(8, 8)),
            keras.layers.LSTM(24, return_sequences=True),
            keras.layers.Bidirectional(keras.layers.LSTM(16)),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile(optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def text_convnet(keras: Any) -> Any:
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input(shape=(12,), dtype="int32"),
            layers.Embedding(20, 8),
            layers.Conv1D(16, 3, padding="same", activation="relu"),
            layers.GlobalMaxPooling1D(),
            layers.Dense(1, activation="sigmoid"),
        ]
    )
    model.compile(optimizer="adam", loss="binary_crossentropy", metrics=["accuracy"])
    return model


def normalized(keras: Any) -> Any:
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input(shape=(8, 8, 1)),
            layers.Rescaling(2.0, offset=-1.0),
            layers.Flatten(),
            layers.Dense(48, activation="gelu"),
            layers.LayerNormalization(),
            layers.LeakyReLU(negative_slope=0.1),
            layers.Dense(10),
            layers.Softmax(),
        ]
    )
    model.compile(
        optimizer=keras.optimizers.SGD(learning_rate=0.05, momentum=0.9, nesterov=True),
        loss=keras.losses.CategoricalCrossentropy(),
        metrics=["accuracy"],
    )
    return model


def upsampled(keras: Any) -> Any:
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input(shape=(8, 8, 1)),
            layers.Conv2D(8, 3, strides=2, padding="same", activation="relu"),
            layers.Conv2DTranspose(8, 3, strides=2, padding="same", activation="relu"),
            layers.MaxPooling2D(2),
            layers.Reshape((16, 8)),
            layers.Permute((2, 1)),
            layers.Flatten(),
            layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile(optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


Script = Callable[[Any], Any]

TRAINED: dict[str, tuple[Script, str, str, int]] = {
    "simple_convnet": (simple_convnet, "images", "one_hot", 15),
    "deep_convnet": (deep_convnet, "images", "labels", 15),
    "multilayer_perceptron": (multilayer_perceptron, "images", "labels", 15),
    "binary_classifier": (binary_classifier, "cancer", "cancer_labels", 20),
    "regression": (regression, "diabetes", "diabetes_targets", 40),
    "separable": (separable, "images", "labels", 12),
    "sequence_lstm": (sequence_lstm, "rows", "labels", 12),
    "text_convnet": (text_convnet, "tokens", "token_labels", 15),
    "normalized": (normalized, "images", "one_hot", 10),
    "upsampled": (upsampled, "images", "labels", 15),
}
"""By name: the script, the names of its inputs and targets in the data, and its epochs."""


def first_steps(model: Any, name: str, data: dict[str, Any]) -> list[Any]:
    """The weights of a compiled model after three steps on batches that are not mixed."""
    _, inputs, targets, _ = TRAINED[name]
    model.fit(data[inputs][:96], data[targets][:96], batch_size=32, epochs=1, shuffle=False, verbose=0)
    return list(model.get_weights())


def run(keras: Any, name: str, data: dict[str, Any], seed: int) -> dict[str, float]:
    """Train a script and measure it on the samples held out."""
    keras.utils.set_random_seed(seed)
    script, inputs, targets, epochs = TRAINED[name]
    model = script(keras)
    x, y = data[inputs], data[targets]
    cut = int(0.8 * len(x))
    model.fit(x[:cut], y[:cut], batch_size=32, epochs=epochs, validation_split=0.1, verbose=0)
    return dict(model.evaluate(x[cut:], y[cut:], verbose=0, return_dict=True))

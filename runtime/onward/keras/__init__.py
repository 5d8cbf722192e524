"""What a Keras user types: change `import keras` to `from onward import keras`.

    model = keras.Sequential([
        keras.Input(shape=(28, 28, 1)),
        keras.layers.Conv2D(32, 3, activation="relu"),
        keras.layers.MaxPooling2D(),
        keras.layers.Flatten(),
        keras.layers.Dense(10, activation="softmax"),
    ])
    model.compile("adam", "sparse_categorical_crossentropy", ["accuracy"])
    model.fit(x, y, epochs=5, validation_split=0.1)
    model.save("model.onnx")

Images are channels last, weights have Keras's layouts and defaults are Keras's; what is saved is ONNX.
Underneath are `onward.nn` and `onward.train`.
"""

from types import SimpleNamespace

from onward.keras import layers
from onward.keras.models import History, Model, Sequential, load_model, set_random_seed
from onward.keras.tensors import Input, KerasTensor
from onward.keras.training import callbacks, losses, optimizers, to_categorical

__all__ = [
    "History",
    "Input",
    "KerasTensor",
    "Model",
    "Sequential",
    "callbacks",
    "layers",
    "losses",
    "models",
    "optimizers",
    "utils",
]

models = SimpleNamespace(Model=Model, Sequential=Sequential, load_model=load_model)
utils = SimpleNamespace(set_random_seed=set_random_seed, to_categorical=to_categorical)

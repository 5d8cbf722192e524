"""Runs scripts under Keras itself: python peer.py JOB.npz ANSWER.npz, where keras and torch are installed.

A job holds data, and for each `predict/<script>/<number>` a weight of ours: the answer is what Keras's model
with these weights gives, and in `trained/<script>/<number>` its weights after some steps.
"""

import os
import sys

os.environ["KERAS_BACKEND"] = "torch"

import keras
import numpy as np
from scripts import TRAINED, first_steps


def main(job: str, answer: str) -> None:
    data = dict(np.load(job))
    found = {}
    for name, (script, inputs, _, _) in TRAINED.items():
        weights = [data[f"predict/{name}/{i}"] for i in range(int(data[f"count/{name}"]))]
        model = script(keras)
        model.set_weights(weights)
        found[name] = model.predict(data[inputs][:16], verbose=0)
        for i, weight in enumerate(first_steps(model, name, data)):
            found[f"trained/{name}/{i}"] = weight
    np.savez(answer, **found)


main(*sys.argv[1:])

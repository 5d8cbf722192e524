from __future__ import annotations

import numpy as np
import pytest

from onward.data import (
    Augmentation,
    Compose,
    Crop,
    Cutout,
    Erase,
    Flip,
    Mixup,
    Noise,
    Rotate,
    Shift,
    parse_augmentation,
)
from onward.errors import ConfigError, DataError

IMAGES = np.random.default_rng(0).random((37, 3, 11, 9), np.float32)
INDICES = np.random.default_rng(1).permutation(1000)[:37]
ALL = [
    Flip(),
    Flip(vertical=True),
    Shift(3),
    Crop(2),
    Crop(2, mode="reflect"),
    Crop(0, size=(7, 5)),
    Rotate(25),
    Noise(0.1),
    Noise(0.1, limits=(0, 1)),
    Cutout(4),
    Compose((Flip(), Crop(2), Rotate(15), Noise(0.05), Cutout(3))),
]
each = pytest.mark.parametrize("augment", ALL, ids=str)


def run(
    augment: Augmentation, rows: slice | np.ndarray = np.s_[:], seed: int = 5, epoch: int = 2
) -> np.ndarray:
    return augment(IMAGES[rows], INDICES[rows], seed=seed, epoch=epoch)


@each
def test_a_sample_is_changed_alike_in_every_batch(augment: Augmentation) -> None:
    whole = run(augment)
    assert whole.dtype == np.float32
    assert whole.flags.c_contiguous
    for rows in (np.s_[3:4], np.s_[5:12], np.random.default_rng(2).permutation(37)):
        assert run(augment, rows).tobytes() == np.ascontiguousarray(whole[rows]).tobytes()


@each
def test_epoch_seed_and_sample_change_the_outcome(augment: Augmentation) -> None:
    base = run(augment)
    assert run(augment).tobytes() == base.tobytes()
    assert run(augment, epoch=3).tobytes() != base.tobytes()
    assert run(augment, seed=6).tobytes() != base.tobytes()
    assert augment(IMAGES, INDICES + 1000, seed=5, epoch=2).tobytes() != base.tobytes()


@each
def test_the_callers_images_are_left_alone(augment: Augmentation) -> None:
    frozen = IMAGES.copy()
    frozen.flags.writeable = False
    augment(frozen, INDICES, seed=0, epoch=0)


@each
def test_float64_is_kept(augment: Augmentation) -> None:
    assert augment(IMAGES.astype(np.float64), INDICES, seed=0, epoch=0).dtype == np.float64


def test_flip_gives_each_image_or_its_mirror() -> None:
    mirrored = [
        np.array_equal(out, image[:, :, ::-1]) for out, image in zip(run(Flip()), IMAGES, strict=True)
    ]
    same = [np.array_equal(out, image) for out, image in zip(run(Flip()), IMAGES, strict=True)]
    assert all(a != b for a, b in zip(mirrored, same, strict=True))
    assert 5 < sum(mirrored) < 32
    np.testing.assert_array_equal(run(Flip(probability=1)), IMAGES[:, :, :, ::-1])
    np.testing.assert_array_equal(
        run(Flip(horizontal=False, vertical=True, probability=1)), IMAGES[:, :, ::-1]
    )


def test_shift_moves_by_whole_pixels_and_fills() -> None:
    dot = np.zeros((400, 1, 9, 9), np.float32)
    dot[:, 0, 4, 4] = 1
    moved = Shift(2, fill=-1)(dot, np.arange(400), seed=0, epoch=0)
    places = {(int(y) - 4, int(x) - 4) for _, _, y, x in np.argwhere(moved == 1)}
    assert places == {(y, x) for y in range(-2, 3) for x in range(-2, 3)}
    assert ((moved == 1).sum(axis=(1, 2, 3)) == 1).all()
    for image in moved:
        (_, y, x), *_ = np.argwhere(image == 1)
        outside = 81 - (9 - abs(y - 4)) * (9 - abs(x - 4))
        assert (image == -1).sum() == outside
    np.testing.assert_array_equal(run(Shift(0)), IMAGES)


def test_crop_cuts_windows_of_the_image() -> None:
    out = run(Crop(0, size=(7, 5)))
    assert out.shape == (37, 3, 7, 5)
    corners = set()
    for cut, image in zip(out, IMAGES, strict=True):
        found = [
            (y, x) for y in range(5) for x in range(5) if np.array_equal(image[:, y : y + 7, x : x + 5], cut)
        ]
        assert len(found) == 1
        corners.add(found[0])
    assert len(corners) > 10
    assert run(Crop(3, size=4)).shape == (37, 3, 4, 4)
    reflected = run(Crop(3, mode="reflect"))
    assert set(np.unique(reflected)) <= set(np.unique(IMAGES))


def test_rotate_by_zero_and_by_a_known_angle(monkeypatch: pytest.MonkeyPatch) -> None:
    np.testing.assert_array_equal(run(Rotate(0)), IMAGES)
    square = IMAGES[:2, :, :9, :9]
    monkeypatch.setattr("onward.data.counter.Draws.uniform", lambda self, count: np.array([[1.0], [0.0]]))
    turned = Rotate(90)(square, [0, 1], seed=0, epoch=0)
    expected = np.stack([np.rot90(square[0], 1, axes=(1, 2)), np.rot90(square[1], -1, axes=(1, 2))])
    np.testing.assert_allclose(turned, expected, atol=1e-6)


def test_rotate_is_bilinear_and_fills_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onward.data.counter.Draws.uniform", lambda self, count: np.array([[1.0]]))
    y, x = np.mgrid[:21, :21].astype(np.float64) - 10
    ramp = (2 * y + 3 * x)[None, None]
    turned = Rotate(30, fill=99)(ramp, [0], seed=0, epoch=0)[0, 0]
    angle = np.pi / 6
    expected = 2 * (np.cos(angle) * y + np.sin(angle) * x) + 3 * (np.cos(angle) * x - np.sin(angle) * y)
    inside = np.hypot(y, x) < 9.5
    np.testing.assert_allclose(turned[inside], expected[inside], atol=1e-12)
    assert turned[0, 0] == turned[20, 20] == turned[0, 20] == turned[20, 0] == 99


def test_noise_has_its_deviation_and_limits() -> None:
    noise = run(Noise(0.2)) - IMAGES
    assert abs(noise.std(dtype=np.float64) / 0.2 - 1) < 5 / np.sqrt(2 * noise.size)
    limited = run(Noise(0.5, limits=(0, 1)))
    assert limited.min() == 0
    assert limited.max() == 1
    np.testing.assert_array_equal(run(Noise(0)), IMAGES)


def test_cutout_fills_one_square() -> None:
    out = run(Cutout(4, fill=7))
    sizes = set()
    for cut, image in zip(out, IMAGES, strict=True):
        hole = cut[0] == 7
        rows, columns = np.flatnonzero(hole.any(axis=1)), np.flatnonzero(hole.any(axis=0))
        assert hole.sum() == len(rows) * len(columns)
        assert np.ptp(rows) == len(rows) - 1
        assert np.ptp(columns) == len(columns) - 1
        sizes |= {len(rows), len(columns)}
        np.testing.assert_array_equal(cut[:, ~hole], image[:, ~hole])
        assert (cut[:, hole] == 7).all()
    assert max(sizes) == 4


def test_stages_of_one_kind_draw_apart() -> None:
    once, twice = run(Shift(3)), run(Compose((Shift(3), Shift(3))))
    assert not np.array_equal(once, twice)
    double_flip = run(Compose((Flip(), Flip())))
    assert not np.array_equal(double_flip, IMAGES)


def test_parse() -> None:
    assert parse_augmentation("flip") == Flip()
    assert parse_augmentation("flip, shift=3,crop,rotate=5,noise=0.1,cutout=2") == Compose(
        (Flip(), Shift(3), Crop(), Rotate(5.0), Noise(0.1), Cutout(2))
    )
    for text in ("", "mirror", "shift=x", "shift=-1", "flip=2", "crop=1.5"):
        with pytest.raises(ConfigError):
            parse_augmentation(text)


def test_bad_options_and_inputs() -> None:
    for make in (
        lambda: Shift(-1),
        lambda: Crop(-1),
        lambda: Crop(mode="wrap"),  # type: ignore[arg-type]
        lambda: Rotate(181),
        lambda: Noise(-0.1),
        lambda: Cutout(0),
        lambda: Flip(probability=1.5),
        lambda: run(Crop(0, size=12)),
        lambda: run(Crop(9, mode="reflect")),
    ):
        with pytest.raises(ConfigError):
            make()
    with pytest.raises(DataError, match=r"\[N, C, H, W\]"):
        Flip()(IMAGES[0], [0], seed=0, epoch=0)
    with pytest.raises(DataError, match="int64"):
        Flip()(IMAGES.astype(np.int64), INDICES, seed=0, epoch=0)
    with pytest.raises(DataError, match="37 images"):
        Flip()(IMAGES, [0], seed=0, epoch=0)


def test_erase_sets_one_rectangle() -> None:
    images = np.ones((40, 2, 16, 16), np.float32)
    found = Erase(probability=0.5, area=0.3)(images, np.arange(40), seed=1, epoch=2)
    touched = [i for i in range(40) if (found[i] == 0).any()]
    assert 8 < len(touched) < 32
    for i in touched:
        rows, columns = np.nonzero(found[i, 0] == 0)
        area = (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
        assert area == len(rows)
        assert area <= 0.4 * 256
        np.testing.assert_array_equal(found[i, 0], found[i, 1])


def test_mixup_keeps_most_of_the_labelled_image() -> None:
    images = np.repeat(np.arange(64, dtype=np.float32), 4).reshape(64, 1, 2, 2)
    found = Mixup(alpha=1.0)(images, np.arange(64), seed=0, epoch=0)
    other = np.roll(images, 1, axis=0)
    share = ((found - other) / (images - other))[:, 0, 0, 0]
    assert ((share > 0) & (share < 1)).all()
    # of Beta(2, 1)
    assert abs(share.mean() - 2 / 3) < 0.08
    again = Mixup(alpha=1.0)(images, np.arange(64), seed=0, epoch=0)
    np.testing.assert_array_equal(found, again)
    assert isinstance(parse_augmentation("mixup=0.4"), Mixup)

"""Films of small changes: the frames that can be said in advance, and how flips are counted."""

import numpy as np
import pytest
from test_corruptions import some_pixels

from curator.noise.perturbations import KINDS, flips, frames

COUNTS = {24: {"motion_blur": 21, "translate": 16}, 104: {"translate": 41}}


@pytest.mark.parametrize("side", [24, 104])
@pytest.mark.parametrize("kind", KINDS)
def test_a_film(kind: str, side: int) -> None:
    pixels, ids = some_pixels(3, side), np.array([5, 9, 2**62])
    film = frames(pixels, ids, kind)
    assert (film.shape[1:], film.dtype) == (pixels.shape, np.uint8)
    assert len(film) == COUNTS[side].get(kind, 31)
    assert (frames(pixels[2:], ids[2:], kind) == film[:, 2:]).all()
    chance = kind in ("gaussian_noise", "shot_noise", "snow")
    assert (frames(pixels, ids, kind, seed=1) != film).any() == chance
    steps = np.abs(film[1:].astype(float) - film[:-1]).mean(axis=(1, 2, 3, 4))
    assert 0 < steps.mean() < 25
    assert (steps > 0).all()


def test_the_frame_without_a_change() -> None:
    pixels, ids = some_pixels(2), np.arange(2)
    for kind, place in {
        "gaussian_noise": 0, "shot_noise": 0, "zoom_blur": 0, "brightness": 15, "translate": 7, "rotate": 15,
        "tilt": 15, "scale": 15,
    }.items():  # fmt: skip
        assert np.abs(frames(pixels, ids, kind)[place].astype(int) - pixels).max() <= 1, kind


def test_where_pictures_go() -> None:
    pixels, ids = np.zeros((1, 25, 25, 3), np.uint8), np.arange(1)
    pixels[0, 12, 12] = 255  # the middle
    pixels[0, 12, 20] = 200  # right of it
    moved = frames(pixels, ids, "translate")
    assert moved[10, 0, 12, 15].tolist() == [255] * 3
    assert moved[0, 0, 12, 5].tolist() == [255] * 3
    assert moved[15, 0, 12, :8].max() == 0
    turned = frames(pixels, ids, "rotate")[30, 0, :, :, 0]  # by 15 degrees, about the middle
    assert turned[12, 12] >= 250
    y, x = np.unravel_index(np.argmax(np.where(turned > 240, 0, turned)), turned.shape)
    assert np.hypot(y - 12, x - 12) == pytest.approx(8, abs=0.7)
    assert abs(np.degrees(np.arctan2(y - 12, x - 12))) == pytest.approx(15, abs=4)
    small = frames(pixels, ids, "scale")[0, 0, :, :, 0]  # 0.7 times as large
    assert np.argmax(small[12, 14:]) + 14 == pytest.approx(12 + 0.7 * 8, abs=1)


def test_flips_by_hand() -> None:
    classes = np.array([[0, 1], [0, 2], [3, 1], [3, 1], [0, 2]])
    assert flips(classes, "rotate").tolist() == [2 / 4, 3 / 4]  # with the frame before
    assert flips(classes, "shot_noise").tolist() == [2 / 4, 2 / 4]  # with the first one

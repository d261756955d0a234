"""Corruptions: each rule stated again in plain loops, and what every kind must keep to."""

import colorsys
import math

import numpy as np
import pytest
from scipy import ndimage

from curator.draws import Lots
from curator.errors import InputError
from curator.noise import blurs, digital, noises, weather
from curator.noise.corruptions import KINDS, SEVERITIES, corrupt, parameters

FIXED = {"defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression"}


def some_pixels(count: int = 5, side: int = 24) -> np.ndarray:
    """Smooth coloured pictures with an edge."""
    rng = np.random.default_rng(0)
    found = rng.integers(20, 230, (count, 4, 4, 3)).astype(np.float32)
    found = np.stack([ndimage.zoom(each, (side / 4, side / 4, 1), order=1) for each in found])
    found[:, side // 2 :, : side // 2] = (250, 10, 90)
    return found.astype(np.uint8)


def lots(count: int, *purpose: str) -> Lots:
    return Lots(3, purpose, np.arange(count) * 17 + 2**60)


@pytest.mark.parametrize("side", [24, 104])
@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_depends_on_its_own_id_alone(kind: str, side: int) -> None:
    pixels, ids = some_pixels(3, side), np.array([5, -7, 2**62])
    for severity in SEVERITIES:
        found = corrupt(pixels, ids, kind, severity)
        assert (found.shape, found.dtype) == (pixels.shape, np.uint8)
        assert (corrupt(pixels[1:], ids[1:], kind, severity) == found[1:]).all()
        assert (corrupt(pixels[::-1], ids[::-1], kind, severity) == found[::-1]).all()
        other = corrupt(pixels, ids + 1, kind, severity)
        assert (other == found).all() == (kind in FIXED)
        assert (corrupt(pixels, ids, kind, severity, seed=1) == other).all() == (kind in FIXED)
    assert (pixels == some_pixels(3, side)).all()


@pytest.mark.parametrize("kind", ["gaussian_noise", "shot_noise", "impulse_noise", "brightness", "contrast"])
def test_a_higher_severity_changes_more(kind: str) -> None:
    for side in (32, 128):
        pixels = some_pixels(8, side)
        far = [np.abs(corrupt(pixels, np.arange(8), kind, s).astype(float) - pixels).mean() for s in SEVERITIES]
        assert far == sorted(far)


def test_whose_parameters() -> None:
    assert [parameters(size) for size in (28, 32, 99, 100, 224)] == ["CIFAR-10-C"] * 3 + ["ImageNet-C"] * 2


def test_unknown() -> None:
    with pytest.raises(InputError, match="'fogg' is unknown; did you mean 'fog'"):
        corrupt(some_pixels(1), np.zeros(1, np.int64), "fogg", 1)
    with pytest.raises(InputError, match="no severity 6"):
        corrupt(some_pixels(1), np.zeros(1, np.int64), "fog", 6)
    assert corrupt(some_pixels(1)[:0], np.zeros(0, np.int64), "fog", 1).shape == (0, 24, 24, 3)


def test_gaussian_noise_has_its_deviation() -> None:
    grey = np.full((4, 100, 100, 3), 128, np.uint8)
    added = noises.gaussian_noise(grey, lots(4), 0.08) - 128
    assert added.std() == pytest.approx(0.08 * 255, rel=0.01)
    assert abs(added.mean()) < 0.2
    # 68.27 and 95.45 % of a normal distribution are within one and two deviations
    assert np.mean(np.abs(added) < 20.4) == pytest.approx(0.6827, abs=0.005)
    assert np.mean(np.abs(added) < 40.8) == pytest.approx(0.9545, abs=0.003)


@pytest.mark.parametrize(("value", "photons"), [(0, 25), (30, 3), (128, 60), (255, 500)])
def test_shot_noise_is_poisson(value: int, photons: float) -> None:
    flat = np.full((4, 100, 100, 3), value, np.uint8)
    counts = noises.shot_noise(flat, lots(4), photons) * (photons / 255)
    expected = value / 255 * photons
    assert np.abs(counts - counts.round()).max() < 1e-3
    assert counts.mean() == pytest.approx(expected, abs=4 * math.sqrt(expected / counts.size) + 1e-9)
    assert counts.var() == pytest.approx(expected, rel=0.03, abs=1e-9)
    assert np.mean(counts < 0.5) == pytest.approx(math.exp(-expected), abs=0.01)


def test_impulse_noise() -> None:
    grey = np.full((4, 100, 100, 3), 100, np.uint8)
    found = noises.impulse_noise(grey, lots(4), 0.17)
    assert set(np.unique(found)) == {0, 100, 255}
    assert [np.mean(found == v) for v in (0, 255)] == pytest.approx([0.085, 0.085], abs=0.005)


def test_smooth_is_a_gaussian_filter() -> None:
    picture = some_pixels(1)[0].astype(np.float32)
    for sigma in (0.05, 0.4, 0.9, 1.5):
        expected = ndimage.gaussian_filter(picture, (sigma, sigma, 0), mode="nearest", truncate=4)
        assert blurs.smooth(picture, sigma) == pytest.approx(expected, abs=0.01)


def test_glass_takes_colours_one_after_the_other() -> None:
    side, reach = 9, 2
    drawn = np.random.default_rng(1).random((6, 2 * side * side))
    steps = (drawn.reshape(6, 2, side, side) * 2 * reach).astype(int) - reach
    for number, found in enumerate(blurs._sources(drawn, side, reach)):
        picture = np.arange(side * side).reshape(side, side)
        for y in range(side - reach, reach, -1):
            for x in range(side - reach, reach, -1):
                down, right = steps[number, :, y, x]
                picture[y, x] = picture[y + down, x + right]
        assert (found.reshape(side, side) == picture).all()


@pytest.mark.parametrize("angle", [-45, -13, 0, 30, 45, -90, -135])
def test_moved_adds_shifted_pictures(angle: float) -> None:
    picture = some_pixels(1)[0].astype(np.float32)
    side, radius, sigma = len(picture), 6, 2.0
    weights = [math.exp(-i * i / (2 * sigma * sigma)) for i in range(2 * radius + 1)]
    expected = np.zeros_like(picture)
    for i, weight in enumerate(weights):
        down = math.ceil(i * math.sin(math.radians(angle)) - 0.5)
        right = math.ceil(i * math.cos(math.radians(angle)) - 0.5)
        rows = np.clip(np.arange(side) + down, 0, side - 1)
        columns = np.clip(np.arange(side) + right, 0, side - 1)
        expected += weight / sum(weights) * picture[rows][:, columns]
    assert blurs.moved(picture, radius, sigma, angle) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("factor", [1.0, 1.01, 1.1, 1.25, 2.0, 3.0])
def test_enlarged_is_a_linear_zoom(factor: float) -> None:
    for side in (24, 33):
        pictures = some_pixels(2, 48)[:, :side, :side].astype(np.float32)
        kept = math.ceil(side / factor)
        top = (side - kept) // 2
        zoomed = ndimage.zoom(pictures[:, top : top + kept, top : top + kept], (1, factor, factor, 1), order=1)
        cut = (zoomed.shape[1] - side) // 2
        expected = zoomed[:, cut : cut + side, cut : cut + side]
        assert blurs.enlarged(pictures, factor) == pytest.approx(expected, abs=0.01)


def test_the_disc() -> None:
    assert blurs.disc(3, 0.1).shape == (9, 9)  # one more on each side, which the softening may reach
    kernel = blurs.disc(10, 0.5)
    assert kernel.sum() == pytest.approx(1, abs=0.02)
    assert kernel == pytest.approx(kernel.T)
    y, x = np.mgrid[-3:4, -3:4]
    plain = (x * x + y * y <= 9) / 29
    assert blurs.disc(3, 0.1)[1:-1, 1:-1] == pytest.approx(plain, abs=1e-6)


def test_plasma_by_plain_loops() -> None:
    side, decay, given = 8, 1.7, lots(2, "fog")
    found = weather.plasma(given, side, decay)
    for number in range(2):
        heights = np.zeros((side, side))
        step, reach = side, 100.0
        while step >= 2:
            half, cells = step // 2, side // step
            drawn = given.uniforms(3 * cells * cells, step)[number].reshape(3, cells, cells)
            noise = reach * (2 * reach * drawn - reach)
            for r in range(0, side, step):
                for c in range(0, side, step):
                    corners = [heights[(r + a) % side, (c + b) % side] for a in (0, step) for b in (0, step)]
                    heights[r + half, c + half] = sum(corners) / 4 + noise[0, r // step, c // step]
            for r in range(0, side, step):
                for c in range(0, side, step):
                    for part, (y, x) in ((1, (r, c + half)), (2, (r + half, c))):
                        around = [
                            heights[(y + a) % side, (x + b) % side]
                            for a, b in ((half, 0), (-half, 0), (0, half), (0, -half))
                        ]
                        heights[y, x] = sum(around) / 4 + noise[part, r // step, c // step]
            step, reach = half, reach / decay
        heights -= heights.min()
        assert found[number] == pytest.approx(heights / heights.max(), abs=1e-5)


def test_brightness_raises_the_value_alone() -> None:
    pixels = np.array([[[(10, 200, 60), (0, 0, 0), (255, 3, 3), (90, 90, 90)]]], np.uint8)
    found = weather.brightness(pixels, lots(1), 0.2)[0, 0]
    for before, after in zip(pixels[0, 0], found, strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*(before / 255))
        expected = colorsys.hsv_to_rgb(hue, saturation, min(1, value + 0.2))
        assert after / 255 == pytest.approx(expected, abs=1e-4)


def test_contrast_keeps_the_means() -> None:
    pixels = some_pixels(2)
    found = digital.contrast(pixels, lots(2), 0.3)
    for channel in range(3):
        mean = pixels[1, :, :, channel].mean()
        assert found[1, :, :, channel] == pytest.approx(mean + 0.3 * (pixels[1, :, :, channel] - mean), abs=0.01)


def test_elastic_blur_and_no_move() -> None:
    row = np.random.default_rng(0).random((1, 20)).astype(np.float32)
    for sigma in (0.9, 4.0, 30.0):
        expected = ndimage.gaussian_filter1d(row[0].astype(float), sigma, mode="reflect", truncate=3)
        assert digital._mirrored_blur(20, sigma) @ row[0] == pytest.approx(expected, abs=1e-5)
    pixels = some_pixels(2)
    assert digital.elastic_transform(pixels, lots(2), 0, 0, 0) == pytest.approx(pixels, abs=1e-3)
    moved = digital.elastic_transform(pixels, lots(2), 3, 1, 1)
    assert np.abs(moved - pixels).mean() > 1


def test_pixelate() -> None:
    pixels = some_pixels(1, 8)
    found = digital.pixelate(pixels, lots(1), 0.5)[0]
    boxes = pixels[0].reshape(4, 2, 4, 2, 3).mean(axis=(1, 3))
    assert np.abs(found[::2, ::2] - boxes).max() <= 1  # rounded after each axis
    assert (found[::2, ::2] == found[1::2, 1::2]).all()


def test_frozen_panes_look_as_they_say() -> None:
    panes = weather.panes(1.0, 64)
    assert {pane.shape for pane in panes} == {(512, 512, 3)}
    for pane, (colour, deviation) in zip(panes, weather._LOOKS, strict=True):
        assert pane.mean(axis=(0, 1)) == pytest.approx(colour, abs=6)  # what is beyond white is cut
        assert pane.mean(axis=2).std() == pytest.approx(deviation, rel=0.2)
    assert {len(pane) for pane in weather.panes(0.2, 32)} == {102}
    assert {len(pane) for pane in weather.panes(1.0, 600)} == {660}

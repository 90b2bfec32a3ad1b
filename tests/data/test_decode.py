"""Decoding: every kind of still picture comes out as the same RGB, and what is no still picture is named."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from irdm.data.decode import centre_crop, decode, header

RNG = np.random.default_rng(0)
RAMP = np.linspace(0, 255, 16 * 24).reshape(16, 24).astype(np.uint8)
COLOUR = RNG.integers(0, 256, (16, 24, 3)).astype(np.uint8)


def encoded(image, kind="PNG", **options):
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(data, size=None, channels=3):
    """As [h, w, c] numbers."""
    out = decode(data, size and (size, size), "some/image", channels)
    assert out.dtype == torch.uint8 and out.shape[0] == channels
    return out.permute(1, 2, 0).numpy()


def weights(length, out, kernel, support):
    """The matrix of a resampling with antialiasing, from its definition: [out, length]."""
    scale = length / out
    wide = max(scale, 1.0)
    matrix = np.zeros((out, length))
    for i in range(out):
        centre = (i + 0.5) * scale
        for j in range(length):
            distance = (j + 0.5 - centre) / wide
            matrix[i, j] = kernel(distance) if abs(distance) <= support else 0
    return matrix / matrix.sum(1, keepdims=True)


def cubic(x, a=-0.5):
    x = abs(x)
    if x < 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


def box(x):
    return 1.0 if -0.5 < x <= 0.5 else 0.0


def slow_crop(array, size):
    """ADM's crop in float64: every pass is clipped, as 8 bits must be, but not rounded."""
    array = array.astype(float)

    def resample(height, width, kernel, support):
        rows, columns = (
            weights(array.shape[0], height, kernel, support),
            weights(array.shape[1], width, kernel, support),
        )
        return np.einsum("ih,hjc->ijc", rows, np.einsum("hwc,jw->hjc", array, columns).clip(0, 255)).clip(0, 255)

    while min(array.shape[:2]) >= 2 * size:
        array = resample(array.shape[0] // 2, array.shape[1] // 2, box, 0.5)
    scale = size / min(array.shape[:2])
    array = resample(round(array.shape[0] * scale), round(array.shape[1] * scale), cubic, 2)
    top, left = (array.shape[0] - size) // 2, (array.shape[1] - size) // 2
    return array[top : top + size, left : left + size]


@pytest.mark.parametrize("shape", [(64, 64), (70, 45), (33, 100), (129, 64), (17, 16), (9, 12)])
def test_the_crop_is_box_halving_then_bicubic_then_the_centre(shape):
    array = RNG.integers(0, 256, (*shape, 3)).astype(np.uint8)
    found = np.asarray(centre_crop(Image.fromarray(array), (16, 16))).astype(float)
    assert found.shape == (16, 16, 3)
    difference = np.abs(found - slow_crop(array, 16))
    assert difference.max() < 2.5 and difference.mean() < 1.1  # Pillow rounds after each pass


def test_an_image_of_the_right_size_is_left_alone():
    square = COLOUR[:, 4:20]
    assert np.array_equal(pixels(encoded(square), 16), square)
    assert np.array_equal(pixels(encoded(COLOUR), 16), square)
    assert np.array_equal(pixels(COLOUR), COLOUR)
    assert np.array_equal(pixels(COLOUR, 16), square)


def test_a_crop_need_not_be_square():
    tall = decode(encoded(COLOUR), (16, 6), "some/image").permute(1, 2, 0).numpy()
    assert np.array_equal(tall, COLOUR[:, 9:15])
    assert centre_crop(Image.fromarray(COLOUR), (32, 48)).size == (48, 32)


GREY = np.stack([RAMP] * 3, -1)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "WEBP", "GIF"])
def test_greyscale(kind):
    data = encoded(RAMP, kind, **({"lossless": True} if kind == "WEBP" else {}))
    assert np.array_equal(pixels(data), GREY)
    assert np.array_equal(pixels(data, channels=1), RAMP[..., None])
    assert header(data, "some/image")[:3] == (16, 24, kind != "WEBP"), "a WebP does not say that it is grey"


def test_what_is_grey():
    alpha = np.full((16, 24), 255, np.uint8)
    for image in (
        RAMP > 99,
        RAMP.astype(np.uint16) * 257,
        Image.merge("LA", [Image.fromarray(a) for a in (RAMP, alpha)]),
    ):
        data = encoded(image)
        assert header(data, "some/image").grey
        assert np.array_equal(pixels(data, channels=1).repeat(3, 2), pixels(data))
    assert not header(encoded(COLOUR), "some/image").grey and not header(COLOUR, "some/image").grey
    assert header(RAMP[..., None], "some/image").grey
    assert np.array_equal(pixels(encoded(GREY), channels=1), RAMP[..., None]), "grey stored as RGB is the same grey"
    luma = COLOUR @ np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
    assert np.abs(pixels(COLOUR, channels=1)[..., 0] - luma).max() <= 1


def test_one_bit():
    assert np.array_equal(pixels(encoded(Image.fromarray(RAMP > 99))), np.stack([(RAMP > 99) * 255] * 3, -1))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_rounded_and_not_clipped(kind):
    values = np.linspace(0, 65535, 16 * 24).reshape(16, 24).astype(np.uint16)
    expected = np.round(values / 257)
    assert np.array_equal(pixels(encoded(values, kind)), np.stack([expected] * 3, -1))


def test_cmyk():
    image = Image.fromarray(COLOUR).convert("CMYK")
    assert np.array_equal(pixels(encoded(image, "TIFF")), COLOUR)
    solid = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # no cyan, full magenta and yellow: red
    assert np.abs(pixels(encoded(solid, "JPEG")).astype(int) - (255, 0, 0)).max() <= 3


def test_palette():
    image = Image.fromarray(COLOUR).quantize(16)
    assert np.array_equal(pixels(encoded(image)), np.asarray(image.convert("RGB")))


def test_transparency_is_laid_over_white():
    alpha = RNG.integers(0, 256, (16, 24)).astype(np.uint8)
    share = alpha[..., None] / 255
    expected = COLOUR * share + 255 * (1 - share)
    assert np.abs(pixels(encoded(np.dstack([COLOUR, alpha]))) - expected).max() <= 1
    grey = pixels(encoded(Image.merge("LA", [Image.fromarray(RAMP), Image.fromarray(alpha)])))
    assert np.abs(grey - (GREY * share + 255 * (1 - share))).max() <= 1

    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([10, 20, 30, 200, 0, 0])
    palette.putpixel((1, 1), 1)
    found = pixels(encoded(palette, transparency=0))
    assert tuple(found[0, 0]) == (255, 255, 255) and tuple(found[1, 1]) == (200, 0, 0)
    keyed = pixels(encoded(Image.new("RGB", (4, 4), (1, 2, 3)), transparency=(1, 2, 3)))
    assert (keyed == 255).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_cameras_rotation_is_applied(orientation):
    turn = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, 1),
    }[orientation]  # EXIF 2.3, tag 0x0112: how the stored rows must be turned to be seen upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(pixels(encoded(COLOUR, "PNG", exif=exif)), turn(COLOUR))


def test_a_phones_picture_with_a_second_one_behind_it_is_the_first():
    second = Image.fromarray(COLOUR[::-1])
    data = encoded(COLOUR, "MPO", save_all=True, append_images=[second], quality=95)
    assert Image.open(io.BytesIO(data)).n_frames == 2
    assert np.abs(pixels(data).astype(int) - pixels(encoded(COLOUR, "JPEG", quality=95))).max() == 0


FRAMES = [Image.fromarray(np.roll(COLOUR, i, 1)) for i in range(3)]


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_several_frames_are_refused_by_name(kind):
    data = encoded(FRAMES[0], kind, save_all=True, append_images=FRAMES[1:])
    with pytest.raises(ValueError, match="some/image cannot be used: it has 3 frames"):
        decode(data, (16, 16), "some/image")


LARGE = RNG.integers(0, 256, (64, 64, 3)).astype(np.uint8)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "TIFF", "WEBP", "PPM"])
@pytest.mark.parametrize("kept", [0.05, 0.5, 0.9])
def test_a_file_cut_short_is_refused_by_name(kind, kept):
    data = encoded(LARGE, kind)
    with pytest.raises(ValueError, match="some/image cannot be used"):
        decode(data[: int(len(data) * kept)], (16, 16), "some/image")


@pytest.mark.parametrize("data", [b"", b"not a picture", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"])
def test_no_picture_is_refused_by_name(data):
    with pytest.raises(ValueError, match="some/image cannot be used: it is no picture"):
        decode(data, (16, 16), "some/image")


def test_floating_point_pixels_are_refused():
    with pytest.raises(ValueError, match="floating-point"):
        decode(encoded(Image.fromarray(RAMP.astype(np.float32)), "TIFF"), (16, 16), "some/image")


def test_an_altered_png_is_refused_wherever_it_is_altered():
    """Pillow itself compares no checksum of the pixels."""
    data = encoded(LARGE)
    for at in range(0, len(data), 97):
        changed = bytearray(data)
        changed[at] ^= 0x10
        with pytest.raises(ValueError, match="some/image cannot be used"):
            decode(bytes(changed), None, "some/image")


def test_images_that_would_fill_the_memory_are_refused():
    with pytest.raises(ValueError, match="9000 x 9000 pixels; expected at most"):
        decode(encoded(Image.new("1", (9000, 9000))), (16, 16), "some/image")
    with pytest.raises(ValueError, match="too long to be cropped"):
        decode(encoded(Image.new("L", (1, 60000))), (256, 256), "some/image")

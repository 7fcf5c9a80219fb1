"""Images of every kind, and files that are none, cut off, or made to hurt."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from fcn_fast.command import InputError
from fcn_fast.data.images import PHOTO, is_image, read_image, read_values

FORMATS = {"PNG": "RGB", "JPEG": "RGB", "GIF": "P", "BMP": "RGB", "TIFF": "RGB", "WEBP": "RGB", "PPM": "RGB"}


def photo(size=(24, 17)):
    return read_image(PHOTO).resize(size)


def encoded(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def png(width, height, *chunks, bits=8, colour=2, data=b""):
    """A PNG with this header, whatever its data."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    middle = b"".join(chunk(*c) for c in chunks)
    return b"\x89PNG\r\n\x1a\n" + header + middle + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def read(tmp_path, data, name="image.png"):
    (tmp_path / name).write_bytes(data)
    return read_image(tmp_path / name)


def refused(tmp_path, data, name="image.png"):
    with pytest.raises(InputError) as caught:
        read(tmp_path, data, name)
    message = str(caught.value)
    assert message.startswith("image: expected ") and str(tmp_path / name) in message and "\n" not in message
    return message


@pytest.mark.parametrize("format", FORMATS)
def test_formats(format, tmp_path):
    original = photo()
    image = read(tmp_path, encoded(original.convert(FORMATS[format]), format), "without an ending")
    assert image.mode == "RGB" and image.size == original.size
    assert abs(np.asarray(image).astype(int) - np.asarray(original)).mean() < 30


@pytest.mark.parametrize(("ending", "dtype"), [("png", "<u2"), ("tif", "<u2"), ("tif", ">u2"), ("tif", "<i4")])
def test_16_bits_keep_their_upper_half(ending, dtype, tmp_path):
    """Pillow's own conversion cuts them off at 255, which leaves nothing but white."""
    values = np.arange(0, 1 << 16, 113, dtype=np.uint16)[:560].reshape(20, 28)
    Image.fromarray(values.astype(dtype)).save(tmp_path / f"grey.{ending}")
    image = np.asarray(read_image(tmp_path / f"grey.{ending}"))
    np.testing.assert_array_equal(image, np.repeat((values >> 8)[..., None], 3, 2))


def test_16_bits_in_colour(tmp_path):
    values = np.arange(60, dtype=np.uint16).reshape(4, 5, 3) * 1000
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    np.testing.assert_array_equal(np.asarray(read(tmp_path, png(5, 4, bits=16, data=rows))), values >> 8)


def test_floating_point_is_refused(tmp_path):
    message = refused(tmp_path, encoded(Image.fromarray(np.zeros((3, 4), np.float32)), "TIFF"), "values.tif")
    assert "expected 8 or 16 bits a channel, got floating-point values" in message


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparency_is_left_out(mode, tmp_path):
    """Colours stay what they are under it."""
    original = photo().convert("RGB")
    image = original.convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    image = image.convert(mode)
    data = encoded(image, "TIFF" if mode == "PA" else "PNG") if mode != "PA" else encoded(image.convert("P"), "PNG")
    expected = image.convert("RGB") if mode != "PA" else image.convert("P").convert("RGB")
    np.testing.assert_array_equal(np.asarray(read(tmp_path, data)), np.asarray(expected))


def test_palettes_and_their_transparency(tmp_path):
    image = photo().convert("P")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        actual = read(tmp_path, encoded(image, "PNG", transparency=bytes(range(256))))
    np.testing.assert_array_equal(np.asarray(actual), np.asarray(image.convert("RGB")))
    np.testing.assert_array_equal(read_values(tmp_path / "image.png"), np.asarray(image))


def test_cmyk(tmp_path):
    original = photo()
    image = read(tmp_path, encoded(original.convert("CMYK"), "JPEG", quality=100), "print.jpg")
    assert abs(np.asarray(image).astype(int) - np.asarray(original)).mean() < 8


@pytest.mark.parametrize("turn", range(1, 9))
def test_every_exif_orientation_comes_upright(turn, tmp_path):
    stored = photo((16, 8))
    exif = Image.Exif()
    exif[0x0112] = turn
    ways = [None, 0, 3, 1, 5, 4, 6, 2]  # of Image.Transpose: what puts it upright
    expected = stored if turn == 1 else stored.transpose(Image.Transpose(ways[turn - 1]))
    image = read(tmp_path, encoded(stored, "PNG", exif=exif))
    np.testing.assert_array_equal(np.asarray(image), np.asarray(expected))
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "image.png", upright=False)), np.asarray(stored))


def test_orientations_that_are_none(tmp_path):
    exif = Image.Exif()
    for value in (0, 9, 65535):
        exif[0x0112] = value
        assert read(tmp_path, encoded(photo((16, 8)), "PNG", exif=exif)).size == (16, 8)


def test_of_an_animation_the_first_frame(tmp_path):
    frames = [Image.new("RGB", (5, 5), colour) for colour in ("red", "lime")]
    assert read(tmp_path, encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])).getpixel((0, 0)) == (
        255,
        0,
        0,
    )


@pytest.mark.parametrize("format", FORMATS)
def test_cut_off_anywhere(format, tmp_path):
    """Refused, but where nothing of the picture was lost."""
    data = encoded(photo().convert(FORMATS[format]), format)
    for end in {0, 1, 2, 3, 4, 8, 11, 16, 25, len(data) // 3, len(data) // 2, len(data) - 30}:
        refused(tmp_path, data[:end])


def test_decompression_bombs(tmp_path):
    """What claims to be enormous is refused by its header, and what unpacks to much where it does."""
    refused(tmp_path, png(60000, 60000))
    refused(tmp_path, png(2**31 - 1, 2**31 - 1))
    text = b"comment\0\0" + zlib.compress(bytes(1 << 26), 9)
    refused(tmp_path, png(1, 1, (b"zTXt", text), data=bytes(4)))
    refused(tmp_path, png(1, 1, (b"iCCP", b"profile\0\0" + text), data=b"\0"))
    refused(tmp_path, b"GIF89a" + struct.pack("<HH", 65535, 65535) + b"\xf7\0\0" + bytes(768) + b",")
    refused(tmp_path, b"P6 999999 999999 255\n")
    refused(
        tmp_path,
        b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 2**31 - 1, 2**31 - 1, 1, 24, 0, 0, 0, 0, 0, 0),
    )


def test_formats_that_run_other_programs_are_refused(tmp_path):
    """Pillow would hand an EPS to Ghostscript."""
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(/tmp) (w) file\n%%EOF\n"
    refused(tmp_path, eps, "image.eps")
    refused(tmp_path, eps, "image.png")
    assert is_image("a.PNG") and is_image("b.jpeg") and is_image("c.webp")
    assert not any(map(is_image, ("a.eps", "b.ps", "c.pdf", "d.mpg", "e.txt", "f", "png")))


@pytest.mark.parametrize(
    "name", ["with spaces.png", "ünï→漢字 🙂.png", "-dash.png", "percent%20s.png", "a'b\"c;$(d).png"]
)
def test_file_names(name, tmp_path):
    assert read(tmp_path, encoded(photo(), "PNG"), name).size == (24, 17)
    refused(tmp_path, b"nothing", name)


SAMPLES = [encoded(photo((9, 7)).convert(mode), format) for format, mode in FORMATS.items()]
SAMPLES.append(
    encoded(photo((9, 7)), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0")
)
SAMPLES.append(encoded(photo((9, 7)), "TIFF", compression="tiff_lzw"))


@settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    st.sampled_from(SAMPLES),
    st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=8), st.integers(0, 8)), min_size=1, max_size=6),
)
@pytest.mark.filterwarnings("ignore")
def test_changed_bytes(tmp_path, data, changes):
    """Whatever stands in a file, it is an image or it is refused."""
    for where, new, gone in changes:
        at = int(where * len(data))
        data = data[:at] + new + data[at + gone :]
    path = tmp_path / "changed"
    path.write_bytes(data)
    for function in (read_image, read_values):
        try:
            assert function(path) is not None
        except InputError as error:
            assert "\n" not in str(error)

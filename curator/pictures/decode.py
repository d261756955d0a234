"""Turns the bytes of one image file into pixels, or says why it cannot.

Everything the tool stores or trains on passes through here once, so the rule is strict: a file either
decodes completely or is refused with a reason. A picture that is grey from the middle down would be
pseudo-labelled like any other, and nothing later could tell.

JPEGs are decoded by libjpeg-turbo through simplejpeg in strict mode, where the warnings that libjpeg only
prints ("Premature end of JPEG file", "Corrupt JPEG data: ...") are errors. Strict mode also refuses the few
files whose damage a viewer would hide, such as stray bytes between restart markers. Plain PNGs, 8-bit grey or
RGB without metadata, are decoded by libpng through OpenCV once their checksums are found right: Pillow holds the GIL
while it decodes small ones. Other formats go through Pillow, which reports missing data but not altered data unless the
format has checksums; so do all other PNGs, and the few JPEGs with chroma layouts that TurboJPEG has no name for (3x1,
say), where Pillow shows damage as grey.

`decode_crop` decodes only the part of a JPEG that training asks for, where the C module `_jpeg` was built.

No function keeps state between calls, so all may run in threads. simplejpeg, `_jpeg`, Pillow's codecs, OpenCV
and hashlib release the GIL while they work.
"""

import contextlib
import hashlib
import io
import math
import re
import struct
import warnings
import zlib
from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

_jpeg: ModuleType | None
try:
    from curator import _jpeg  # type: ignore[attr-defined, no-redef, unused-ignore]
except ImportError:  # no C compiler or no libjpeg headers when curator was installed
    _jpeg = None

# Left, top, width and height in pixels.
Box = tuple[int, int, int, int]

# The formats found in image data sets. A closed list keeps out Pillow's readers that start other programs
# (EPS runs Ghostscript), and text or random bytes are refused without importing every plugin. JPEG 2000 is
# left out because OpenJPEG returns a blank picture for some files that end right after their headers.
_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF")

# An EXIF directory entry for tag 0x0112 (Orientation) with one value that is not the short 1, in big or
# little endian order, or an XMP orientation. A match only sends the file to Pillow, which then decides, so
# a chance match costs time and nothing else.
_MAYBE_ORIENTED = re.compile(
    rb"\x01\x12\x00.\x00\x00\x00\x01(?!\x00\x01)|\x12\x01.\x00\x01\x00\x00\x00(?!\x01\x00)|tiff:Orientation",
    re.DOTALL,
)

_PILLOW_WARNINGS = ("ignore", None, Warning, re.compile(r"PIL\."), 0)

_FAST_COLOURS = ("RGB", "YCbCr", "Gray")
# JPEGs that hold brightness as a component of its own, so that the others need not be turned into pixels to see grey.
_BRIGHTNESS = ("YCbCr", "Gray")
# How a PNG begins, up to its size; what follows its size: bits, colour, compression, filter, interlacing; the checksum.
_PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
_PNG_HEADER = struct.Struct(">II5sI")
_PLAIN = (b"\x08\0\0\0\0", b"\x08\x02\0\0\0")  # 8-bit grey and 8-bit RGB, not interlaced
_PNG_CHUNK, _CHECKSUM = struct.Struct(">I4s"), struct.Struct(">I")
# Least side in pixels of a picture that is decoded at a smaller scale to be hashed at 32 x 32.
_HASHED_FROM = 64


class UnreadableImage(ValueError):
    """The bytes are no complete image; the message is a short reason such as "truncated JPEG"."""


class Scan(NamedTuple):
    """What reading a whole file tells about it.

    Attributes:
        width: Columns in pixels, after EXIF orientation.
        height: Rows in pixels, after EXIF orientation.
        content_hash: 32 hex digits, BLAKE2b with a 16 byte digest over the bytes of the file.
        phash: Perceptual hash of the pixels, see `scan`, as a signed 64-bit integer.
    """

    width: int
    height: int
    content_hash: str
    phash: int


def decode(data: bytes) -> npt.NDArray[np.uint8]:
    """Decodes an image file to RGB.

    EXIF orientation is applied. Transparency is dropped, not composited: palette, palette with
    transparency, LA and RGBA pictures become what Pillow's `convert("RGB")` makes of them, as in timm's
    data sets (`timm.data.ImageDataset`), so a fully transparent pixel shows the colour stored under it.
    Animations give their first frame. Colour profiles are ignored, as in timm.

    16-bit grey pictures are scaled, `round(value / 257)`, where Pillow's own conversion would clip at 255.
    Floating point pictures are refused: the format does not say which range is white.

    Args:
        data: The bytes of the file.

    Returns:
        uint8 [height, width, 3], C-contiguous, RGB.

    Raises:
        UnreadableImage: If the data is not an image, is truncated or corrupt, is of a kind named above, or
            has more pixels than Pillow's `Image.MAX_IMAGE_PIXELS` (a decompression bomb).
    """
    if not data:
        raise UnreadableImage("empty file")
    if not data.startswith(b"\xff\xd8\xff"):
        plain = _decode_plain_png(data) if data.startswith(_PNG) else None
        return _decode_with_pillow(data) if plain is None else plain
    header = _jpeg_header(data)
    if header is None:
        return _decode_with_pillow(data)
    fast = header[2] in _FAST_COLOURS
    try:
        # Decoded even where Pillow must do it again: Pillow shows corrupt JPEG data as grey and says nothing.
        pixels: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(data, "RGB" if fast else "CMYK")
    except ValueError as error:
        raise _jpeg_error(error) from error
    # On a JPEG of 120 KB the walk over the headers takes 2 microseconds, 4 with EXIF and a profile;
    # Pillow's open and getexif take 36 and the decoding 1050.
    if fast and not _headers(data)[1]:
        return pixels
    return _decode_with_pillow(data)


def decode_crop(data: bytes, choose: Callable[[int, int], Box]) -> npt.NDArray[np.uint8]:
    """Decodes the part of a picture that is wanted, to the same pixels as `decode` and cutting it out.

    Of an ordinary JPEG only that part is decoded: a sixth of the time is saved for random crops of 8 % to 100 % of the
    area (the two floors of benchmarks/results/loader.md). What lies below it is not read, so damage there is not
    noticed; a file that does not end with the marker of its end, as cut files do not, is decoded completely and
    strictly.

    Args:
        data: The bytes of the file.
        choose: Called once with width and height after orientation; returns the part.

    Returns:
        uint8 [height, width, 3] RGB, perhaps a view of the whole picture.

    Raises:
        UnreadableImage: As `decode`.
    """
    box: Box | None = None
    if _jpeg is not None and data.startswith(b"\xff\xd8\xff") and data.endswith(b"\xff\xd9"):
        header = _jpeg_header(data)
        if header is not None and header[2] in _FAST_COLOURS and not _headers(data)[1]:
            width, height, _ = header
            box = choose(width, height)
            pixels = np.empty((box[3], box[2], 3), np.uint8)
            with contextlib.suppress(ValueError):  # `decode` says why, or reads what this libjpeg cannot
                _jpeg.crop(data, *box, pixels)
                return pixels
    whole = decode(data)
    left, top, width, height = box or choose(whole.shape[1], whole.shape[0])
    return whole[top : top + height, left : left + width]


def decode_small(data: bytes, side: int) -> npt.NDArray[np.uint8]:
    """Decodes a picture that is to be shown small: the same as `decode`, or smaller where that costs less.

    An ordinary JPEG is decoded at a scale of 1/8 to 1, as strictly as in `decode`.

    Args:
        data: The bytes of the file.
        side: Pixels that the longer side keeps at least, if it has them.

    Returns:
        uint8 [height, width, 3], C-contiguous, RGB.

    Raises:
        UnreadableImage: As `decode`.
    """
    header = _jpeg_header(data) if data.startswith(b"\xff\xd8\xff") else None
    if header is None or header[2] not in _FAST_COLOURS or _headers(data)[1]:
        return decode(data)
    width, height, _ = header
    scale = min(side / max(width, height), 1)
    low, across = max(math.ceil(height * scale), 1), max(math.ceil(width * scale), 1)
    try:
        pixels: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(
            data, "RGB", min_height=low, min_width=across, min_factor=1
        )
    except ValueError as error:
        raise _jpeg_error(error) from error
    return pixels


def scan(data: bytes) -> Scan:
    """Reads a whole file and returns its size and hashes.

    Of an ordinary JPEG all data is decoded, as strictly as in `decode`, but turned into pixels in grey and at a scale
    of 1/8 to 1, which takes half the time. One or two bits of the hash may come out otherwise than at full size.

    The perceptual hash is the DCT hash known as pHash (C. Zauner, "Implementation and Benchmarking of
    Perceptual Image Hash Functions", 2010; phash.org): grey, area resize to 32 x 32, DCT-II, the 8 x 8 lowest
    frequencies, one bit each for a coefficient above their median. The median leaves out the DC term,
    which measures brightness and not structure. Bits are packed row by row (vertical frequency first), the
    DC term being the most significant bit; the 64 bits are read as two's complement, since the stores have
    no unsigned 64-bit integer. Compare two hashes by the number of differing bits.

    Args:
        data: The bytes of the file.

    Returns:
        The size in pixels after orientation, the content hash and the perceptual hash.

    Raises:
        UnreadableImage: As `decode`.
    """
    header = _jpeg_header(data) if data.startswith(b"\xff\xd8\xff") else None
    if header is not None and header[2] in _BRIGHTNESS and not _headers(data)[1]:
        width, height, _ = header
        try:
            grey = simplejpeg.decode_jpeg(data, "GRAY", min_height=_HASHED_FROM, min_width=_HASHED_FROM, min_factor=1)
        except ValueError as error:
            raise _jpeg_error(error) from error
    else:
        pixels = decode(data)
        height, width, _ = pixels.shape
        grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    return Scan(width, height, hashlib.blake2b(data, digest_size=16).hexdigest(), _phash(grey))


def _phash(grey: npt.NDArray[np.uint8]) -> int:
    small = cv2.resize(grey, (32, 32), interpolation=cv2.INTER_AREA)
    low = cv2.dct(small.astype(np.float32))[:8, :8].ravel()
    bits = np.packbits(low > np.median(low[1:]))
    return int.from_bytes(bits.tobytes(), "big", signed=True)


def _jpeg_header(data: bytes) -> tuple[int, int, str] | None:
    """Width, height and colour space of a JPEG; None where only Pillow can tell."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except KeyError:  # simplejpeg has no name for the layout 4:4:1
        return None
    except ValueError as error:
        if not _headers(data)[0]:
            raise UnreadableImage("truncated JPEG") from error
        if "subsampling" in str(error):
            # TurboJPEG knows the usual chroma layouts only; libjpeg under Pillow reads them all.
            return None
        raise _jpeg_error(error) from error
    _check_size(int(width), int(height))
    return int(width), int(height), str(colours)


def _headers(data: bytes) -> tuple[bool, bool]:
    """Walks the marker segments before a JPEG's first scan (ITU-T T.81, annex B.1.1).

    Returns:
        Whether the headers reach the first scan, and whether an APP1 segment (EXIF or XMP) may hold an
        orientation other than 1.
    """
    at, end, oriented = 2, len(data) - 4, False
    while at <= end and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        after = at + 2 + (data[at + 2] << 8 | data[at + 3])
        if marker == 0xDA:
            return after <= len(data), oriented
        if marker == 0xE1 and _MAYBE_ORIENTED.search(data, at + 4, after):
            oriented = True
        at = after
    return False, oriented


def _check_size(width: int, height: int) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        raise UnreadableImage(f"{width} x {height} pixels is more than the limit of {limit}")


def _jpeg_error(error: ValueError) -> UnreadableImage:
    if "Premature end of JPEG" in str(error):
        return UnreadableImage("truncated JPEG")
    # libjpeg's own words, without the name of the C function that TurboJPEG puts first.
    return UnreadableImage(re.sub(r"^tj\w+\(\): ", "", str(error)))


def _decode_plain_png(data: bytes) -> npt.NDArray[np.uint8] | None:
    """Decodes a PNG of 8-bit grey or RGB that is whole and holds pixels only (PNG, third edition, sections 5 and 11).

    Returns:
        The pixels, the same as Pillow's; None for any other file, which Pillow then reads or says what is wrong with.
    """
    with contextlib.suppress(struct.error, cv2.error):
        width, height, kind, checksum = _PNG_HEADER.unpack_from(data, 16)
        if kind not in _PLAIN or checksum != zlib.crc32(data[12:29]):
            return None
        _check_size(width, height)
        view, at, name = memoryview(data), 33, b""
        while name != b"IEND":
            length, name = _PNG_CHUNK.unpack_from(data, at)
            end = at + 8 + length
            if name not in (b"IDAT", b"IEND") or _CHECKSUM.unpack_from(data, end)[0] != zlib.crc32(view[at + 4 : end]):
                return None
            at = end + 4
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
        return None if pixels is None else pixels.astype(np.uint8, copy=False)
    return None


def _decode_with_pillow(data: bytes) -> npt.NDArray[np.uint8]:
    # Pillow warns about odd metadata, which is no fault of the pixels. `warnings.catch_warnings` swaps state
    # of the whole process and is not safe in threads, so one filter for warnings raised inside Pillow is put
    # in front and stays there.
    if not warnings.filters or warnings.filters[0] != _PILLOW_WARNINGS:
        warnings.filterwarnings("ignore", module=r"PIL\.")
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise RuntimeError("ImageFile.LOAD_TRUNCATED_IMAGES is set; truncated files would pass as whole")
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            _check_size(*image.size)
            ImageOps.exif_transpose(image, in_place=True)
            if image.mode == "F":
                raise UnreadableImage("floating point pixels without a known range")
            if image.mode.startswith("I"):
                return _grey16(np.asarray(image))
            return np.array(image.convert("RGB"))
    except (UnreadableImage, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise UnreadableImage("not an image") from error
    except Image.DecompressionBombError as error:
        raise UnreadableImage("more pixels than the limit") from error
    except Exception as error:
        # Pillow's plugins let out whatever the damage trips: OSError, SyntaxError, struct.error, IndexError.
        raise UnreadableImage(str(error) or type(error).__name__) from error


def _grey16(values: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
    """Scales grey values 0 to 65535 (uint16 or int32, [H, W]) to uint8 [H, W, 3]."""
    if values.min() < 0 or values.max() > 65535:
        raise UnreadableImage("integer grey values outside 0 to 65535")
    grey = values.astype(np.uint32)  # changed in place: a picture may have 89 million pixels
    grey += 128
    grey //= 257  # which is odd, so this is exact rounding
    return np.repeat(grey.astype(np.uint8)[:, :, None], 3, axis=2)

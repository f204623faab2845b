"""One picture file as an array: the values that the file holds, or a conversion that was asked for by name.

Without a conversion the values are the file's own. A grey picture of 4 bits has values 0..15, a PGM file of maxval 100 values 0..100, a
picture of 16 bits a channel values 0..65535 where `levels` asks for them. A palette is looked up, and a photograph is turned as its EXIF
orientation says. What would lose something is refused: transparency, CMYK, more than 8 bits where 8 are wanted, further frames.

With a conversion, in this order
  mode         grey (L) or colour (RGB) of 8 bits: v -> round(255 v / maxval); what is transparent is laid over the background; grey is
               0.299 R + 0.587 G + 0.114 B
  size (h, w)  the largest part in the middle with the ratio h : w, and the mean over the area that a pixel of the result covers
"""

import functools
import io
import re
import struct
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt

from jaxgen.data.archives import damaged
from jaxgen.errors import ConfigError, DataError

FORMATS = ("PNG", "JPEG", "BMP", "DIB", "GIF", "PPM", "TIFF", "WEBP", "TGA", "JPEG2000", "AVIF", "PCX", "QOI")
SUFFIXES = (
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".bmp", ".dib", ".gif", ".ppm", ".pgm", ".pbm", ".pnm", ".tif", ".tiff"),
    *(".webp", ".tga", ".icb", ".vda", ".vst", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".avif", ".pcx", ".qoi"),
)
GREY = ("1", "L", "I;16", "I;16L", "I;16B", "I;16N")
CONVERTIBLE = ("1", "L", "P", "RGB", "LA", "La", "PA", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV")
TO_RGB = "--data.mode RGB or L converts it, what is transparent over --data.background"
OTHER = "RGB;16B" if sys.byteorder == "little" else "RGB;16L"
WIDE = {"RGB;16B": "RGB;16L", "RGB;16L": "RGB;16B", "RGB;16N": OTHER}  # Pillow's names for colour of 16 bits: other byte order
WIDE |= {name.replace("RGB", "RGBA"): other.replace("RGB", "RGBA") for name, other in WIDE.items()}
GREY_ALPHA = "LA;16B"
EXIF_ORIENTATION, TIFF_BITS, TIFF_PHOTOMETRIC, TIFF_PLANES, TIFF_EXTRA, TIFF_FORMAT = 0x0112, 258, 262, 284, 338, 339
LARGEST = 4096
"""The largest side of `Reading.size`, in pixels."""
PNM_GAP = rb"(?:\s|#[^\r\n]*[\r\n])"
PNM = re.compile(rb"P([2356])" + 3 * (PNM_GAP + rb"+(\d+)") + PNM_GAP)
PBM = re.compile(rb"P([14])" + 2 * (PNM_GAP + rb"+(\d+)") + PNM_GAP)
SEVERAL = "several pictures in one file, save each as a file of its own"
BROKEN = (OSError, ValueError, SyntaxError, KeyError, IndexError, TypeError, EOFError, OverflowError, MemoryError, struct.error)


@dataclass(frozen=True)
class Reading:
    """How files are read: the fields of `DataConfig` that say it, and `cache`, the folder that keeps converted pictures.

    levels: V where the user gave it. size: (), (side,) or (height, width). mode: None, L or RGB. background: behind what is transparent.
    order: of class folders. alphabet: each folder is a class. numbers: two Unicode forms of a name are one class, and classes that all have
    numbers for names are in the order of the numbers. natural: so too, and "class 2" goes before "class 10". pairs: see pairs.py. half: the
    half of every picture that is read; "" for all of it.
    """

    levels: int | None = None
    size: tuple[int, ...] = ()
    mode: str | None = None
    background: str = "white"
    cache: Path | None = None
    order: Literal["alphabet", "numbers", "natural"] = "natural"
    pairs: str | None = None
    half: Literal["", "left", "right"] = ""

    @property
    def converts(self) -> bool:
        """Whether pictures are changed."""
        return bool(self.size or self.mode)

    def check(self) -> None:
        """Raises ConfigError for a size, mode, background or number of levels that cannot be used."""
        if len(self.size) > 2 or not all(1 <= side <= LARGEST for side in self.size):
            wanted = f"one side, or height and width, of 1 to {LARGEST}"
            raise ConfigError("data.size", wanted, " ".join(map(str, self.size)))
        if self.mode not in (None, "L", "RGB"):
            raise ConfigError("data.mode", "L or RGB", self.mode or "nothing")
        if self.mode and self.levels not in (None, 256):
            raise ConfigError("data.levels", f"256 beside data.mode {self.mode}, which makes 8 bits", self.levels)
        if self.background != "white":
            self._check_background()

    def _check_background(self) -> None:
        from PIL import ImageColor

        if not self.mode:
            raise ConfigError("data.background", "data.mode L or RGB beside it", self.background)
        try:
            opaque = len(ImageColor.getrgb(self.background)) == 3
        except ValueError:
            opaque = False
        if not opaque:
            raise ConfigError("data.background", "the name of a colour, or #rrggbb", self.background)


AS_IT_IS = Reading()


@dataclass(frozen=True)
class Picture:
    """pixels: [H, W, C] in {0 .. top}. mode: what the file has, for errors. enlarged: whether the size asked for is larger."""

    pixels: UInt[np.ndarray, "H W C"]
    top: int
    mode: str = ""
    enlarged: bool = False


def read_picture(path: Path, how: Reading = AS_IT_IS) -> Picture:
    """The picture in a file; the module's docstring says which values it has. Raises DataError, one line with the file's name.

    Where `how.levels` is V, the values must be in {0 .. V-1}, and the file must have at least V levels.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        data = path.read_bytes()
        picture = _pnm(data) if PNM.match(data) else _decoded(data, path, how)
    except DataError:
        raise
    except UnidentifiedImageError as error:  # Pillow's text names an object in memory
        raise damaged(path, UnidentifiedImageError("cannot identify image file")) from error
    except (*BROKEN, Image.DecompressionBombError) as error:
        raise damaged(path, error) from error
    if how.mode:
        picture = _in_mode(picture, how.mode)
    _check(picture, path, how.levels)
    picture = _half(picture, how.half, path) if how.half else picture
    return _resized(picture, how.size) if how.size else picture


def size_and_mode(path: Path) -> tuple[tuple[int, int], str] | None:
    """(width, height) and Pillow's mode, as the header says; None where it cannot be read."""
    try:
        with _opened(path.read_bytes()) as picture:
            return picture.size, picture.mode
    except BROKEN:
        return None


def _check(picture: Picture, path: Path, levels: int | None) -> None:
    """Raises DataError where the values of the file are not those of `levels` levels, 256 or fewer where that is None."""
    top = picture.top
    if levels is None and top > 255:
        hint = f"--data.levels {top + 1} reads its values, --data.mode L or RGB makes 8 bits of them"
        raise DataError(str(path), "a grey or RGB picture of 8 bits", f"mode {picture.mode} with {top + 1} levels", hint)
    if levels is not None and top + 1 < levels:
        hint = f"--data.levels {top + 1} reads its values, --data.mode L or RGB scales them to 0..255"
        raise DataError(str(path), f"a picture of {levels} levels", f"one of {top + 1} levels", hint)
    if levels is not None and (highest := int(picture.pixels.max())) >= levels:
        raise DataError(str(path), f"values in 0..{levels - 1} ({levels} levels)", highest)


def _decoded(data: bytes, path: Path, how: Reading) -> Picture:
    """By Pillow, the right way up."""
    from PIL import Image, ImageColor

    _check_one_bitmap(data)
    with _opened(data) as picture:
        frames = getattr(picture, "n_frames", 1)
        if frames > 1 and picture.format != "MPO":  # the further frames of an MPO photograph are previews and other views of it
            raise DataError(str(path), "one picture in a file", f"{frames} frames ({picture.format})", "save each as a file of its own")
        bits, both_bytes = _bits(picture, data), _has_both_bytes(picture)
        tags = picture.tag_v2 if picture.format == "TIFF" else {}
        if 2 in tags.get(TIFF_FORMAT, ()):
            raise DataError(str(path), "a grey or RGB picture of 8 bits", "one of signed numbers", "convert it first")
        if 0 in (tags.get(TIFF_EXTRA) or ()):  # Pillow drops them
            raise DataError(str(path), "a grey or RGB picture", "one with a channel more, of an unknown kind", "save it without")
        if not how.mode and any(re.match("BGRA?;1[56]", _layout(tile)) for tile in picture.tile):  # Pillow widens them to 8 bits
            raise DataError(str(path), "colour of 8 bits a channel", "5 or 6 bits (16 a pixel)", TO_RGB)
        picture.load()
        mode, clear, orientation = picture.mode, picture.has_transparency_data, _orientation(picture)
        wide = bits > 8 and mode in (*GREY, "RGB")
        if mode not in CONVERTIBLE and (mode not in GREY or clear) or clear and wide:
            got = f"mode {mode}" + (" with a transparent colour" if clear else "")
            raise DataError(str(path), "a grey or RGB picture of 8 bits", got, "convert it first")
        if (clear or mode not in (*GREY, "P", "RGB")) and not how.mode:
            got = f"mode {mode}" + (" with a transparent colour" if clear and "A" not in mode.upper() else "")
            raise DataError(str(path), "a grey or RGB picture without transparency", got, TO_RGB)
        if clear and bits < 8 and isinstance(key := picture.info.get("transparency"), int) and mode in GREY:
            picture.info["transparency"] = (key & (2**bits - 1)) * (255 // (2**bits - 1))  # Pillow widens the values but not the key
        if mode == "RGBA" and bits > 8 and both_bytes:
            picture = Image.fromarray(_eight(_sixteen(data), 65535))
        if clear:
            behind = Image.new("RGBA", picture.size, ImageColor.getrgb(how.background))
            picture = Image.alpha_composite(behind, picture.convert("RGBA")).convert("RGB")
        elif mode not in (*GREY, "RGB"):
            picture = picture.convert("RGB")
        elif mode == "RGB" and wide and not both_bytes and not how.mode:
            raise DataError(str(path), "colour of 8 bits a channel (of 16 in PNG, PPM and TIFF)", f"{bits} bits", TO_RGB)
        pixels = np.asarray(picture)
    if mode == "RGB" and wide and both_bytes:
        return Picture(_turned(_sixteen(data), orientation), 65535, mode)
    own, top = _own_values(pixels, bits if mode in GREY else 8)
    if tags.get(TIFF_PHOTOMETRIC) == 0 and mode in GREY and top > 255:  # 0 is white; Pillow turns only those of up to 8 bits
        own = np.uint16(top) - own
    return Picture(_turned(own, orientation), top, mode)


def _opened(data: bytes) -> Any:
    """The picture as Pillow opens it, of one of our formats: others run programs, or read what is no picture."""
    from PIL import Image

    return Image.open(io.BytesIO(data), formats=_formats())


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those of FORMATS that this Pillow has."""
    from PIL import Image

    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _own_values(pixels: np.ndarray, bits: int) -> tuple[np.ndarray, int]:
    """The values in {0 .. top}, the largest that the file can hold. Pillow widens those of fewer bits to 8 or to 16."""
    if pixels.dtype == bool or bits == 1:
        return (pixels > 0).astype(np.uint8), 1
    top = 2**bits - 1
    if pixels.dtype == np.uint8:
        return pixels // (255 // top) if bits < 8 else pixels, min(top, 255)
    return pixels.astype(np.uint16), min(top, 65535)


def _bits(picture: Any, data: bytes) -> int:
    """Bits of a channel, as the header says."""
    if picture.format == "PNG":
        return data[24]
    if picture.format == "TIFF":
        return max(picture.tag_v2.get(TIFF_BITS, (1,)))
    if picture.format == "JPEG2000":
        start = data.index(b"\xff\x4f\xff\x51")  # the size segment: the count of components at 41, their depths from 42 on, 3 bytes each
        return max((depth & 0x7F) + 1 for depth in data[start + 42 : start + 42 + 3 * data[start + 41] : 3])
    if picture.format == "AVIF" and (place := data.find(b"av1C")) > 0:
        return 10 if data[place + 6] & 0x40 else 8  # the flag high_bitdepth: 10 or 12
    return 1 if picture.mode == "1" else 8


def _has_both_bytes(picture: Any) -> bool:
    """Whether `_sixteen` can read this picture."""
    planes = picture.format == "TIFF" and picture.tag_v2.get(TIFF_PLANES, 1) != 1
    return not planes and bool(picture.tile) and all(_layout(tile) in (*WIDE, GREY_ALPHA) for tile in picture.tile)


def _layout(tile: Any) -> str:
    """Pillow's name for how a file keeps its values, "" where the decoder has none."""
    first = tile.args[0] if isinstance(tile.args, tuple) and tile.args else tile.args
    return first if isinstance(first, str) else ""


def _sixteen(data: bytes) -> UInt[np.ndarray, "H W C"]:
    """Colour of 16 bits a channel.

    Pillow reads such a picture as 8 bits a channel, the high byte of every value. It is decoded twice: as it is, and once more with the
    two bytes of every value declared to be in the opposite order, so that Pillow takes the low byte for the high one. A value is
    256 * high + low.
    """
    with _opened(data) as picture:
        if _layout(picture.tile[0]) == GREY_ALPHA:  # no other byte order is known of these, but they have four bytes a pixel as RGBA has
            picture.tile = [tile._replace(args="RGBA") for tile in picture.tile]
            four = np.asarray(picture).astype(np.uint16)
            return (four[..., 0::2] * np.uint16(256) + four[..., 1::2])[..., [0, 0, 0, 1]]
    halves = []
    for other in (False, True):
        with _opened(data) as picture:
            if other:
                swapped = WIDE[_layout(picture.tile[0])]
                picture.tile = [
                    tile._replace(args=(swapped, *tile.args[1:]) if isinstance(tile.args, tuple) else swapped) for tile in picture.tile
                ]
            halves.append(np.asarray(picture).astype(np.uint16))
    return halves[0] * np.uint16(256) + halves[1]


def _orientation(picture: Any) -> int:
    """1 to 8, how the picture lies; 1, upright, where nothing is said or the metadata is damaged. Pillow turns a TIFF file itself."""
    try:
        return int(picture.getexif().get(EXIF_ORIENTATION, 1))
    except BROKEN:
        return 1


def _turned(pixels: np.ndarray, orientation: int) -> UInt[np.ndarray, "H W C"]:
    """[H, W] or [H, W, C] as a viewer shows it: EXIF 2.32, tag Orientation."""
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    down, across = (-1 if orientation in (3, 4, 7, 8) else 1), (-1 if orientation in (2, 3, 6, 7) else 1)
    return np.ascontiguousarray(pixels[::down, ::across])


def _pnm(data: bytes) -> Picture:
    """PGM and PPM, plain and binary: Pillow scales the values of a file whose maxval is not 255."""
    match = PNM.match(data)
    kind, width, height, top = (int(group) for group in match.groups())
    channels, rest = (3 if kind in (3, 6) else 1), data[match.end() :]
    if not 1 <= top <= 65535 or not width * height:
        raise ValueError(f"size {width} x {height} and maxval {top}")
    n = width * height * channels
    if kind in (2, 3):
        values = np.array(re.sub(rb"#[^\r\n]*", b"", rest).split()[:n], np.int64)
    else:
        kept = np.dtype(">u2" if top > 255 else "u1")
        values = np.frombuffer(rest[: min(n, len(rest) // kept.itemsize) * kept.itemsize], kept)
        if rest[n * kept.itemsize :].lstrip()[:1] == b"P":
            raise ValueError(SEVERAL)
    if len(values) != n:
        raise ValueError(f"{len(values)} values of {n}, the file is cut off")
    if values.min() < 0 or values.max() > top:
        raise ValueError(f"values of {values.min()} to {values.max()} in a file of maxval {top}")
    pixels = values.reshape(height, width, channels).astype(np.uint8 if top < 256 else np.uint16)
    return Picture(pixels, top, "RGB" if channels == 3 else "L" if top < 256 else "I;16")


def _check_one_bitmap(data: bytes) -> None:
    """Raises ValueError for a PBM file, plain or binary, with a second picture behind the first."""
    if match := PBM.match(data):
        kind, width, height = (int(group) for group in match.groups())
        rest = data[match.end() :]
        behind = re.sub(rb"#[^\r\n]*|[\s01]", b"", rest) if kind == 1 else rest[(width + 7) // 8 * height :].lstrip()
        if behind[:1] == b"P":
            raise ValueError(SEVERAL)


def _half(picture: Picture, half: str, path: Path) -> Picture:
    """The left or the right half; DataError for an odd width."""
    width = picture.pixels.shape[1]
    if width % 2:
        raise DataError(str(path), "an even width, of two pictures side by side", f"{width} pixels")
    columns = slice(0, width // 2) if half == "left" else slice(width // 2, width)
    return replace(picture, pixels=np.ascontiguousarray(picture.pixels[:, columns]))


def _in_mode(picture: Picture, mode: str) -> Picture:
    """8 bits, grey or colour."""
    from PIL import Image

    pixels = picture.pixels if picture.top == 255 else _eight(picture.pixels, picture.top)
    if mode == "RGB":
        pixels = np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels
    elif pixels.shape[2] == 3:
        pixels = np.asarray(Image.fromarray(pixels).convert("L"))[..., None]
    return Picture(pixels, 255, mode)


def _eight(pixels: np.ndarray, top: int) -> np.ndarray:
    """round(255 v / top), for values in {0 .. top}."""
    return ((pixels.astype(np.uint32) * 510 + top) // (2 * top)).astype(np.uint8)


def _resized(picture: Picture, size: tuple[int, ...]) -> Picture:
    """The largest part in the middle of the wanted ratio, and the mean over the area of each new pixel, rounded to the nearest value."""
    from PIL import Image

    height, width = size if len(size) == 2 else 2 * size
    tall, broad = picture.pixels.shape[:2]
    scale = min(tall / height, broad / width)
    top, left = (tall - scale * height) / 2, (broad - scale * width) / 2
    box = (left, top, min(broad, left + scale * width), min(tall, top + scale * height))
    planes = [
        np.asarray(Image.fromarray(plane.astype(np.float32)).resize((width, height), Image.Resampling.BOX, box))
        for plane in np.moveaxis(picture.pixels, 2, 0)
    ]
    pixels = np.rint(np.stack(planes, axis=2)).astype(picture.pixels.dtype)
    return Picture(pixels, picture.top, picture.mode, enlarged=scale < 1)

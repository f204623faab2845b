"""Picture files: what is read is what the file holds, or one line says which file it is and what to do."""

import struct
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_data import one_line, pixels

from jaxgen import data
from jaxgen.data.decoding import Reading, read_picture
from jaxgen.data.pictures import read_pictures
from jaxgen.errors import DataError


def corner(height: int = 6, width: int = 4) -> np.ndarray:
    """A colour picture without any symmetry: a turn, a mirror image or swapped channels show."""
    picture = pixels(1, (height, width, 3), top=99)[0]
    picture[: height // 2, : width // 2, 0] = 250
    return picture


def png(values: np.ndarray, bits: int, extra: bytes = b"") -> bytes:
    """A PNG file of grey [H, W] or colour [H, W, 3] of any depth, which Pillow does not write."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = values.reshape(len(values), -1)
    if bits == 16:
        lines = [row.astype(">u2").tobytes() for row in rows]
    else:
        lines = [np.packbits((row[:, None] >> np.arange(bits)[::-1]) & 1).tobytes() for row in rows]
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, 2 if values.ndim == 3 else 0, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + line for line in lines))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def tiff16(values: np.ndarray, order: str) -> bytes:
    """An uncompressed TIFF file of colour of 16 bits in either byte order."""
    height, width, _ = values.shape
    body = values.astype(order + "u2").tobytes()
    end = 8 + len(body)
    depths = end + 2 + 12 * 9 + 4
    fields = [(256, 3, 1, width), (257, 3, 1, height), (258, 3, 3, depths), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, 8)]
    fields += [(277, 3, 1, 3), (278, 3, 1, height), (279, 4, 1, len(body))]
    entries = []
    for tag, kind, count, value in fields:
        short = (kind, count) == (3, 1)  # two bytes and two of padding
        entries.append(struct.pack(order + "HHI" + ("HH" if short else "I"), tag, kind, count, value, *([0] if short else [])))
    header = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", end)
    return header + body + struct.pack(order + "H", 9) + b"".join(entries) + struct.pack(order + "I3H", 0, 16, 16, 16)


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


# ------------------------------------------------------------------------------------------------------------------------ the file's values


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_grey_of_few_bits_has_the_values_of_the_file(tmp_path: Path, bits: int) -> None:
    values = pixels(6, (5, 7), top=2**bits - 1)
    for index, picture in enumerate(values):
        write(tmp_path / f"{index}.png", png(picture, bits))
    loaded = [data.load(str(tmp_path), "train", levels=levels) for levels in (None, 2**bits)]
    for dataset in loaded:
        assert dataset.levels == 2**bits
        assert {x.tobytes() for x in dataset.images} <= {x.tobytes() for x in values}
    with pytest.raises(DataError) as caught:
        data.load(str(tmp_path), "train", levels=256)
    one_line(caught.value, "0.png", "a picture of 256 levels", f"got one of {2**bits}", f"--data.levels {2**bits}", "--data.mode L")


@pytest.mark.parametrize("top", [1, 15, 100, 255, 1000, 65535])
@pytest.mark.parametrize("plain", [False, True])
def test_pgm_and_ppm_have_the_values_of_the_file(tmp_path: Path, top: int, plain: bool) -> None:
    for channels, name in ((1, b"P2" if plain else b"P5"), (3, b"P3" if plain else b"P6")):
        values = np.random.default_rng(top).integers(0, top + 1, (3, 4, channels))
        body = b" ".join(b"%d" % value for value in values.ravel()) if plain else values.astype(">u2" if top > 255 else "u1").tobytes()
        path = write(tmp_path / "a.pnm", name + b" # a comment\n4 3\n%d\n" % top + body)
        picture = read_picture(path, Reading(levels=top + 1))
        np.testing.assert_array_equal(picture.pixels, values)
        assert picture.top == top


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"P5 2 2 15\n\x01\x02\x03", ["3 values of 4"]),
        (b"P5 2 2 15\n\x01\x02\x03\x10", ["values of 1 to 16", "maxval 15"]),
        (2 * b"P5 2 2 15\n\x01\x02\x03\x04", ["several pictures in one file"]),
        (b"P5 2 0 15\n", ["size 2 x 0"]),
    ],
)
def test_damaged_pgm_files(tmp_path: Path, content: bytes, parts: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        read_picture(write(tmp_path / "a.pgm", content))
    one_line(caught.value, "a.pgm: wanted a readable file", *parts)


def test_sixteen_bits_are_read_where_levels_asks_for_them(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (5, 3, 3)).astype(np.uint16)
    files = [write(tmp_path / "a.png", png(values, 16)), *(write(tmp_path / f"{o == '<'}.tif", tiff16(values, o)) for o in "<>")]
    for path in files:
        np.testing.assert_array_equal(read_picture(path, Reading(levels=65536)).pixels, values)
    for name in ("grey.png", "grey.tif"):
        Image.fromarray(values[..., 0]).save(tmp_path / name)
        files.append(tmp_path / name)
        np.testing.assert_array_equal(read_picture(files[-1], Reading(levels=65536)).pixels[..., 0], values[..., 0])
    for path in files:
        with pytest.raises(DataError) as caught:
            read_picture(path)
        one_line(caught.value, path.name, "8 bits", "got mode", "65536 levels", "--data.levels 65536", "--data.mode L or RGB")
        with pytest.raises(DataError) as caught:
            read_picture(path, Reading(levels=1000))
        one_line(caught.value, path.name, "values in 0..999")


def test_few_and_many_bits_in_one_folder_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "0.png", png(pixels(1, (4, 4), top=15)[0], 4))
    Image.fromarray(pixels(1, (4, 4))[0]).save(tmp_path / "1.png")
    with pytest.raises(DataError) as caught:
        read_pictures(tmp_path)
    one_line(caught.value, "1.png (picture 1)", "16 levels as 0.png", "got 256 levels", "--data.mode L or RGB")


TURNS = [None, lambda x: x, np.fliplr, lambda x: np.rot90(x, 2), np.flipud, lambda x: x.swapaxes(0, 1)]
TURNS += [lambda x: np.rot90(x, 1), lambda x: np.rot90(x, 2).swapaxes(0, 1), lambda x: np.rot90(x, -1)]
"""By EXIF orientation: how a picture that a viewer shows upright lies in the file."""


EXACT = {".png": {}, ".tif": {}, ".webp": {"lossless": True}, ".jpg": {"quality": 100, "subsampling": 0}}


@pytest.mark.parametrize(("suffix", "options"), EXACT.items())
def test_the_exif_orientation_is_applied_in_every_format(tmp_path: Path, suffix: str, options: dict) -> None:
    upright = corner(16, 8)
    upright[:] = np.where(upright == 250, 250, 20)  # two flat parts
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = tmp_path / f"{orientation}{suffix}"
        Image.fromarray(np.ascontiguousarray(TURNS[orientation](upright))).save(path, exif=exif, **options)
        found = read_picture(path).pixels
        assert found.shape == upright.shape
        assert np.abs(found.astype(int) - upright).max() <= (12 if suffix == ".jpg" else 0)


def test_a_damaged_orientation_is_none(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    Image.fromarray(corner()).save(tmp_path / "a.png", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    np.testing.assert_array_equal(read_pictures(tmp_path).values, [corner()])
    assert not recwarn.list


@pytest.mark.parametrize("suffix", [".gif", ".png", ".webp", ".tif"])
def test_files_of_several_frames_are_refused(tmp_path: Path, suffix: str) -> None:
    first, *rest = (Image.fromarray(picture) for picture in pixels(3, (8, 8, 3)))
    first.save(tmp_path / f"a{suffix}", save_all=True, append_images=rest)
    with pytest.raises(DataError) as caught:
        read_picture(tmp_path / f"a{suffix}")
    one_line(caught.value, f"a{suffix}", "one picture in a file", "got 3 frames", "save each as a file of its own")


def test_the_first_view_of_an_mpo_photograph_is_read(tmp_path: Path) -> None:
    flat = [Image.fromarray(np.full((8, 8, 3), value, np.uint8)) for value in (30, 200)]
    flat[0].save(tmp_path / "a.mpo", save_all=True, append_images=flat[1:])
    (tmp_path / "a.mpo").rename(tmp_path / "a.jpg")
    assert (read_picture(tmp_path / "a.jpg").pixels == 30).all()


@pytest.mark.parametrize("kind", ["L", "RGB", "P", "LA", "RGBA", "CMYK"])
def test_transparency_and_other_modes_are_refused_or_converted(tmp_path: Path, kind: str) -> None:
    colour, path = corner(), tmp_path / ("a.tif" if kind == "CMYK" else "a.png")
    picture = Image.fromarray(colour).convert(kind)
    picture.save(path, **({"transparency": picture.getpixel((0, 0))} if kind in ("L", "RGB", "P") else {}))
    with pytest.raises(DataError) as caught:
        read_picture(path)
    one_line(caught.value, path.name, "without transparency", f"got mode {kind}", "--data.mode RGB or L")
    shown = read_picture(path, Reading(mode="RGB", background="#102030")).pixels
    want = np.asarray(picture.convert("RGB")).copy()
    if kind in ("L", "RGB", "P"):
        want[(np.asarray(picture) == picture.getpixel((0, 0))).reshape(6, 4, -1).all(2)] = (16, 32, 48)
    np.testing.assert_array_equal(shown, want)


@pytest.mark.parametrize("kind", ["LA", "RGBA"])
def test_a_channel_of_an_unknown_kind_is_refused(tmp_path: Path, kind: str) -> None:
    """A TIFF file whose last channel is said to be neither alpha nor anything else, such as infrared."""
    path, extra = tmp_path / "a.tif", partial(struct.pack, "<HHIHH", 338, 3, 1)
    Image.fromarray(corner()).convert(kind).save(path)
    content = path.read_bytes()
    assert content.count(extra(2, 0)) == 1
    path.write_bytes(content.replace(extra(2, 0), extra(0, 0)))
    for how in (Reading(), Reading(mode="RGB")):
        with pytest.raises(DataError) as caught:
            read_picture(path, how)
        one_line(caught.value, path.name, "a channel more, of an unknown kind")


def test_colour_of_five_and_six_bits_is_refused_or_converted(tmp_path: Path) -> None:
    """A bitmap of 16 bits a pixel: pure red, green and blue, and one of 2/31, 17/63 and 20/31."""
    rows, path = struct.pack("<4H", 0x001F, 0x07E0, 0xF800, 0x1234), tmp_path / "a.bmp"
    header = struct.pack("<IiiHHIIiiII3I", 40, 2, 2, 1, 16, 3, len(rows), 0, 0, 0, 0, 0xF800, 0x07E0, 0x001F)
    path.write_bytes(b"BM" + struct.pack("<IHHI", 14 + len(header) + len(rows), 0, 0, 14 + len(header)) + header + rows)
    with pytest.raises(DataError) as caught:
        read_picture(path)
    one_line(caught.value, "a.bmp", "colour of 8 bits a channel", "got 5 or 6 bits", "--data.mode RGB or L")
    want = [[[255, 0, 0], [16, 68, 164]], [[0, 0, 255], [0, 255, 0]]]
    assert np.abs(read_picture(path, Reading(mode="RGB")).pixels.astype(int) - want).max() <= 1


def test_alpha_is_laid_over_the_background(tmp_path: Path) -> None:
    alpha = pixels(1, (6, 4, 1), seed=3)[0]
    Image.fromarray(np.concatenate([corner(), alpha], axis=2)).save(tmp_path / "a.png")
    weight = alpha / 255
    want = corner() * weight + np.array([255, 0, 0]) * (1 - weight)
    found = read_picture(tmp_path / "a.png", Reading(mode="RGB", background="red")).pixels
    assert np.abs(found - want).max() <= 0.51


def test_mode_makes_eight_bits_of_everything(tmp_path: Path) -> None:
    few, many = pixels(1, (3, 4), top=15)[0], np.random.default_rng(0).integers(0, 65536, (3, 4, 3)).astype(np.uint16)
    files = {"few.png": png(few, 4), "many.png": png(many, 16), "ten.pgm": b"P5 4 1 10\n\x00\x05\x09\x0a"}
    eight = {name: read_picture(write(tmp_path / name, content), Reading(mode="RGB")) for name, content in files.items()}
    np.testing.assert_array_equal(eight["few.png"].pixels, np.repeat(few[..., None] * 17, 3, axis=2))
    np.testing.assert_array_equal(eight["many.png"].pixels, np.rint(many / 257))
    assert eight["ten.pgm"].pixels[0, :, 0].tolist() == [0, 128, 230, 255]
    grey = read_picture(tmp_path / "many.png", Reading(mode="L")).pixels
    assert grey.shape == (3, 4, 1)
    assert np.abs(grey[..., 0] - np.rint(many / 257) @ [0.299, 0.587, 0.114]).max() < 1


# ---------------------------------------------------------------------------------------------------------------------------------- folders


def test_files_that_are_not_read_are_counted_once(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for index, picture in enumerate(pixels(12, (4, 4, 3))):
        folder = tmp_path / ("ant" if index % 2 else "bee")
        folder.mkdir(exist_ok=True)
        Image.fromarray(picture).save(folder / f"{index}.png")
    skipped = ["ant/x.heic", "ant/y.HEIC", "bee/notes.txt", "ant/old/1.png"]
    left_by_systems = ["ant/.a.txt", "__MACOSX/ant/._0.png", "ant/__MACOSX/0.png", ".checkpoints/0.png", "Thumbs.db", "bee/desktop.ini"]
    for name in skipped + left_by_systems:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"?")
    sizes = [len(data.load(str(tmp_path), split)) for split in ("train", "validation", "test")]
    assert sum(sizes) == 12
    line = f"jaxgen: {tmp_path}: 16 files, 4 skipped: 1 x pictures in deeper folders (ant/old), 2 x .heic, 1 x .txt\n"
    assert capsys.readouterr().err == line


def test_pictures_with_other_suffixes_are_read(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    suffixes = (".jfif", ".jpe", ".tga", ".jp2", ".dib", ".pcx", ".avif", ".JPG")
    for suffix in suffixes:
        picture = Image.fromarray(np.full((8, 8, 3), 90, np.uint8))
        picture.save(tmp_path / f"a{suffix}", **({"quality": 100} if suffix == ".avif" else {}))
    images = read_pictures(tmp_path).values
    assert images.shape == (len(suffixes), 8, 8, 3)
    assert (np.abs(images.astype(int) - 90) <= 1).all()
    assert capsys.readouterr().err == ""


def test_deeper_folders_alone_are_refused(tmp_path: Path) -> None:
    (tmp_path / "ant" / "monday").mkdir(parents=True)
    Image.fromarray(corner()).save(tmp_path / "ant" / "monday" / "a.png")
    with pytest.raises(DataError) as caught:
        read_pictures(tmp_path)
    one_line(caught.value, "class folders", "got 1 in deeper folders, such as ant/monday/a.png", "move them up")


@pytest.mark.parametrize(
    ("other", "parts"),
    [
        ((4, 4, 1), ["--data.mode RGB or L makes"]),
        ((4, 5, 3), ["--data.size 4 makes"]),
        ((9, 5, 1), ["--data.mode RGB or L and --data.size 4"]),
    ],
)
def test_pictures_that_differ_name_the_options(tmp_path: Path, other: tuple, parts: list[str]) -> None:
    Image.fromarray(pixels(1, (4, 4, 3))[0]).save(tmp_path / "0.png")
    Image.fromarray(pixels(1, other)[0].squeeze()).save(tmp_path / "1.png")
    with pytest.raises(DataError) as caught:
        read_pictures(tmp_path)
    one_line(caught.value, "1.png (picture 1)", "[4, 4, 3] uint8 as 0.png", f"got {list(other)}", *parts)
    assert read_pictures(tmp_path, Reading(size=(4,), mode="L")).values.shape == (2, 4, 4, 1)


# ----------------------------------------------------------------------------------------------------------------------------------- arrays


def test_arrays_that_are_not_used_are_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    np.savez(tmp_path / "a.npz", image=pixels(), labels=np.zeros(20, int), caption=np.zeros(20))
    assert data.load(str(tmp_path / "a.npz"), "train").labels is None
    data.load(str(tmp_path / "a.npz"), "test")
    used = "used: image; not used: labels (did you mean label?), caption"
    assert capsys.readouterr().err == f"jaxgen: {tmp_path / 'a.npz'}: {used}\n"
    np.savez(tmp_path / "b.npz", images=pixels(), label=np.zeros(20, int))
    with pytest.raises(DataError) as caught:
        data.load(str(tmp_path / "b.npz"), "train")
    one_line(caught.value, "an array named 'image'", "got images, label", "rename images to image")


def test_one_array_is_the_images(tmp_path: Path) -> None:
    for name in ("a.npy", "b.NPY"):
        with (tmp_path / name).open("wb") as file:
            np.save(file, pixels())
        assert len(data.load(str(tmp_path / name), "train")) == 16
    with (tmp_path / "c.NPZ").open("wb") as file:
        np.savez(file, image=pixels(), label=np.zeros(20, int))
    assert data.load(str(tmp_path / "c.NPZ"), "train").num_classes == 1


@pytest.mark.parametrize(("name", "command"), [("a.zip", "unzip a.zip"), ("a.tar.gz", "tar xf a.tar.gz")])
def test_a_packed_folder_says_how_to_unpack_it(tmp_path: Path, name: str, command: str) -> None:
    with pytest.raises(DataError) as caught:
        data.load(str(write(tmp_path / name, b"PK")), "train")
    one_line(caught.value, name, "a folder of pictures", "got a packed folder", "unpack it", f"give --data.name its path: {command}")


@pytest.mark.parametrize("name", ["a.npy", "B.NPZ", "c.zip"])
def test_a_file_beside_the_user_needs_no_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    with (tmp_path / name).open("wb") as file:
        np.save(file, pixels()) if name == "a.npy" else np.savez(file, image=pixels())
    if name == "c.zip":
        with pytest.raises(DataError, match="c.zip: wanted an .npz file, an .npy file or a folder of pictures, got a packed folder"):
            data.load(name, "train")
    else:
        assert len(data.load(name, "train")) == 16


def test_lists_are_arrays() -> None:
    dataset = data.Dataset.from_arrays(list(pixels(3)), [0, 2, 1], vector=[[0.5], [1.0], [2.0]])
    assert dataset.labels.tolist() == [0, 2, 1]
    assert dataset.vector_size == 1
    with pytest.raises(DataError) as caught:
        data.Dataset.from_arrays(pixels(2), [[0], [1, 2]])
    one_line(caught.value, "arrays:label", "lists of equal lengths")

import struct
import zlib
from functools import partial

import numpy as np
import pytest
from conftest import photo
from PIL import Image

import decoding
from decoding import Form, decode, suffixes


def read(path, form):
    return decode(partial(Image.open, path), form)


def grey(path, **changes):
    """(int [8, 8] of an image of 8 x 8, its white), without any resizing."""
    pixels, white = read(path, Form(8, 1)._replace(**changes))
    return pixels[..., 0].astype(int), white


def tiff(path, values, bits=16, photometric=1, sample_format=1, order="<"):
    """Writes a TIFF of one strip, grey [h, w] or of colours [h, w, 3], as scanners do."""
    height, width, *colours = values.shape
    kind = {1: "u", 2: "i", 3: "f"}[sample_format]
    pixels = values.astype(f"{order}{kind}{bits // 8}").tobytes()
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 140}
    tags |= {277: 3 if colours else 1, 278: height, 279: len(pixels), 339: sample_format}
    entries = {tag: struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags.items()}
    if colours:
        entries[258] = struct.pack(f"{order}HHII", 258, 3, 3, 134)  # which says where they are
    mark = b"II*\0" if order == "<" else b"MM\0*"
    head = mark + struct.pack(f"{order}IH", 8, len(entries)) + b"".join(entries.values()) + bytes(4)
    path.write_bytes(head + struct.pack(f"{order}HHH", bits, bits, bits) + pixels)
    return path


def pgm(path, values, white):
    height, width = values.shape
    path.write_bytes(b"P5 %d %d %d\n" % (width, height, white) + values.astype(">u2").tobytes())
    return path


def colour_png(path, values):
    """Writes a PNG of 16 bits a colour, which Pillow cannot."""
    height, width, _ = values.shape
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in values)
    chunks = {b"IHDR": struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)}
    chunks |= {b"IDAT": zlib.compress(lines), b"IEND": b""}
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(text)) + name + text + struct.pack(">I", zlib.crc32(name + text))
        for name, text in chunks.items()
    ))  # fmt: skip
    return path


def test_any_mode_and_size_becomes_what_the_config_says(tmp_path):
    base = photo(np.random.default_rng(0), 0.5)
    files = {
        "rgb.png": base,
        "cmyk.jpg": base.convert("CMYK"),
        "palette.gif": base.quantize(64),
        "alpha.png": base.convert("RGBA"),
        "deep.png": Image.fromarray(np.asarray(base.convert("L")).astype(np.uint16) * 257),
        "one.bmp": base.convert("1"),
        "tiny.png": base.resize((1, 1)),
        "faces.pgm": base.convert("L"),
        "photo.ppm": base,
    }
    for name, image in files.items():
        image.save(tmp_path / name)
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    base.rotate(180).save(tmp_path / "turned.png", exif=exif)
    for channels in (1, 3):
        decoded = {path.name: read(path, Form(32, channels))[0] for path in tmp_path.iterdir()}
        assert {x.shape for x in decoded.values()} == {(32, 32, channels)}
        close = {"deep.png", "faces.pgm"} if channels == 1 else {"photo.ppm"}
        for name in close | {"turned.png", "alpha.png"}:
            distance = np.abs(decoded[name].astype(int) - decoded["rgb.png"]).max()
            assert distance <= 2, name


@pytest.mark.parametrize("most, white", [(200, 255), (700, 1023), (3000, 4095), (9999, 16383)])
def test_the_white_of_over_8_bits_is_the_smallest_range_that_holds_all(most, white, tmp_path):
    values = np.arange(64).reshape(8, 8) * most // 63
    Image.fromarray(values.astype(np.uint16)).save(tmp_path / "a.png")
    tiff(tmp_path / "a.tif", values)
    tiff(tmp_path / "b.tif", values, order=">")
    tiff(tmp_path / "c.tif", values, bits=32)
    for path in tmp_path.iterdir():
        read, found = grey(path)
        np.testing.assert_array_equal(read, np.floor(values * 255 / white + 0.5))
        assert found == white, path.name
        read, found = grey(path, white=65535)
        np.testing.assert_array_equal(read, np.floor(values * 255 / 65535 + 0.5))
        assert found == 65535


def test_both_ends_of_a_range_are_exact(tmp_path):
    for white in (255, 1023, 4095, 16383, 65535):
        Image.fromarray(np.full((8, 8), white, np.uint16)).save(tmp_path / "a.png")
        assert set(grey(tmp_path / "a.png")[0].ravel()) == {255}
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(tmp_path / "a.png")
    assert set(grey(tmp_path / "a.png")[0].ravel()) == {0}


def test_the_range_of_a_pgm_is_the_white(tmp_path):
    values = np.arange(64).reshape(8, 8) * 4  # all below 256
    read, white = grey(pgm(tmp_path / "a.pgm", values * 16, 4095))
    expected = np.floor(values * 16 * 255 / 4095 + 0.5)
    assert white == 65535 and np.abs(read - expected).max() <= 1  # Pillow stretches the values
    assert grey(pgm(tmp_path / "b.pgm", values, 65535))[1] == 255  # what all writers name


def test_a_tiff_whose_0_is_white_is_inverted(tmp_path):
    values = np.arange(64).reshape(8, 8) * 65
    for bits in (8, 16):
        given = values >> 4 if bits == 8 else values
        plain, inverted = (
            grey(tiff(tmp_path / f"{p}.tif", given, bits=bits, photometric=p))[0] for p in (1, 0)
        )
        np.testing.assert_array_equal(inverted, 255 - plain)


def test_16_bits_a_colour_are_read_or_refused(tmp_path):
    values = np.random.default_rng(0).integers(0, 65536, (8, 8, 3))
    for name in ("<.tif", ">.tif", "a.png"):
        for shown in (values, values // 16):  # of the latter Pillow would make all but black
            if name.endswith("tif"):
                tiff(tmp_path / name, shown, photometric=2, order=name[0])
            else:
                colour_png(tmp_path / name, shown)
            if shown is values:
                pixels, white = read(tmp_path / name, Form(8, 3))
                assert np.abs(pixels - values * 255 / 65535).max() <= 1 and white == 0
            else:
                with pytest.raises(ValueError, match="16 bits a colour the upper 2 are empty"):
                    read(tmp_path / name, Form(8, 3))


@pytest.mark.parametrize(
    "bits, sample_format, lowest, highest, text",
    [
        (16, 2, -5, 300, "its values are from -5 to 300, not from 0 to 65,535"),
        (32, 2, 0, 70000, "its values are from 0 to 70,000, not from 0 to 65,535"),
        (32, 1, 0, 2**32 - 1, "its values are from -1 to 0, not from 0 to 65,535"),
        (32, 3, 0, 1, "its values are real numbers, whose range is not known"),
    ],
)
def test_values_out_of_range_are_refused(bits, sample_format, lowest, highest, text, tmp_path):
    values = np.zeros((8, 8))
    values[0, :2] = lowest, highest
    with pytest.raises(ValueError, match=text):
        grey(tiff(tmp_path / "a.tif", values, bits=bits, sample_format=sample_format))


def test_a_value_above_the_given_white_is_refused(tmp_path):
    Image.fromarray(np.full((8, 8), 5000, np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="from 5,000 to 5,000, not from 0 to 4,095"):
        grey(tmp_path / "a.png", white=4095)


@pytest.mark.parametrize("ink, ground", [("black", 255), ("white", 0), ((250, 250, 250), 0)])
def test_what_is_transparent_is_white_or_what_shows_the_rest(ink, ground):
    clear = Image.new("RGBA", (50, 50), (0, 0, 0, 0))
    clear.paste(ink, (10, 10, 40, 40))
    pixels, _ = decode(lambda: clear, Form(50, 1))
    assert pixels[0, 0, 0] == ground and abs(int(pixels[25, 25, 0]) - ground) >= 250
    palette = clear.convert("LA").convert("RGBA").quantize(4)
    assert (decode(lambda: palette, Form(50, 1))[0][0, 0] == ground).all()


def test_an_image_fits_into_the_square_as_it_is_told():
    image = Image.new("RGB", (64, 32), (10, 200, 30))  # with a square in the middle, a mark left
    image.paste((250, 0, 90), (24, 8, 40, 24))
    image.paste((255, 255, 255), (0, 12, 8, 20))
    fitted = {fit: decode(lambda: image, Form(32, 3, fit))[0] for fit in decoding.FITS}
    for fit, pixels in fitted.items():
        marked = (pixels[..., 0] > 230) & (pixels[..., 1] < 30)
        height, width = marked.any(1).sum(), marked.any(0).sum()
        wanted = {"squeeze": (16, 8), "pad": (8, 8), "crop": (16, 16)}[fit]
        assert np.abs(np.subtract((height, width), wanted)).max() <= 2, fit
        assert pixels.min(axis=2).max() == (255 if fit != "crop" else pixels.min(axis=2).max())
    assert (fitted["pad"][[0, 7, 24, 31]] == (10, 200, 30)).all()
    assert (fitted["crop"].min(axis=2) < 200).all()  # the mark is cut off
    upright = decode(lambda: image.transpose(Image.Transpose.TRANSPOSE), Form(32, 3, "pad"))[0]
    assert (upright[:, [0, 7, 24, 31]] == (10, 200, 30)).all()
    for fit in ("squeeze", "crop"):
        assert decode(lambda: Image.new("L", (20_000, 3), 9), Form(32, 1, fit))[0].min() == 9


@pytest.mark.parametrize("fit", decoding.FITS)
def test_a_large_jpeg_is_read_at_reduced_scale_and_as_exact(fit, tmp_path, monkeypatch):
    image = photo(np.random.default_rng(0), 0.5).resize((900, 700), Image.Resampling.BICUBIC)
    image.save(tmp_path / "large.jpg", quality=95)
    sizes, load = [], Image.Image.resize

    def resize(image, *args, **options):
        sizes.append(image.size)
        return load(image, *args, **options)

    monkeypatch.setattr(Image.Image, "resize", resize)
    fast = read(tmp_path / "large.jpg", Form(64, 3, fit))[0].astype(int)
    assert sizes[0] == (225, 175)  # a quarter; an eighth is not twice the wanted size
    monkeypatch.setattr(Image.Image, "draft", lambda *_: None)
    exact = read(tmp_path / "large.jpg", Form(64, 3, fit))[0]
    assert np.abs(fast - exact).max() <= 2 and np.ptp(exact) > 50


def test_the_suffixes_are_those_that_pillow_reads():
    assert {".pgm", ".ppm", ".jp2", ".avif", ".png", ".jpg", ".tif", ".qoi"} <= suffixes()
    assert not {".pdf", ".eps", ".h5", ".mpg", ".wmf", ".txt", ".csv", ""} & suffixes()


def odd_files(folder, random):
    """Yields images, and files that only look like one: (path, whether it is an image)."""
    pixels = random.integers(0, 256, (24, 40, 3)).astype(np.uint8)
    plain = Image.fromarray(pixels)
    whole = {
        "grey.png": plain.convert("L"),
        "one.png": Image.new("RGB", (1, 1), "red"),
        "deep.png": Image.fromarray(pixels[..., 0].astype(np.uint16) << 8),
        "print.jpg": plain.convert("CMYK"),
        "clear.png": plain.convert("RGBA"),
        "palette.gif": plain.convert("P"),
        "bits.tiff": plain.convert("1"),
        "wide.png": Image.new("L", (20_000, 3), 9),
        "photo.webp": plain,
        "plain.bmp": plain,
    }
    for name, image in whole.items():
        image.save(folder / name)
        yield folder / name, True
    frames = [plain, plain.rotate(90)]
    plain.save(folder / "moving.gif", save_all=True, append_images=frames)
    yield folder / "moving.gif", True
    for name in list(whole):
        (folder / f"empty {name}").write_bytes(b"")
        yield folder / f"empty {name}", False
        (folder / f"text {name}").write_text("no image\n" * random.integers(1, 99))
        yield folder / f"text {name}", False
        content = (folder / name).read_bytes()
        for i in range(45):
            cut = content[: random.integers(1, len(content))]
            (folder / f"cut {i} {name}").write_bytes(cut)
            yield folder / f"cut {i} {name}", None  # what is left may be enough
            flipped = bytearray(content)
            for at in random.integers(0, len(content), 3):
                flipped[at] ^= 1 << random.integers(8)
            (folder / f"flipped {i} {name}").write_bytes(flipped)
            yield folder / f"flipped {i} {name}", None
    Image.new("1", (20_000, 20_000)).save(folder / "bomb.png")
    yield folder / "bomb.png", False
    (folder / "folder.png").mkdir()
    yield folder / "folder.png", False


@pytest.mark.filterwarnings("ignore")
def test_a_thousand_odd_files_are_each_read_or_named_in_one_line(tmp_path):
    count = 0
    for path, good in odd_files(tmp_path, np.random.default_rng(0)):
        count += 1
        try:
            pixels, _ = read(path, Form(32, 1))
        except Exception as error:
            text = decoding.reason(error)
            assert not good and 0 < len(text) <= 100 and "\n" not in text
        else:
            assert good is not False and pixels.shape == (32, 32, 1)
    assert count > 900


@pytest.mark.parametrize(
    "mode, sizes, expected",
    [
        ("1", [(105, 105)], (48, 1)),  # as Omniglot's
        ("L", [(8, 8), (28, 28)], (32, 1)),  # never below 32
        ("L", [(92, 112)] * 3 + [(4000, 3000)], (48, 1)),  # the median of the shorter side counts
        ("L", [(79, 300)], (32, 1)),  # the multiple that is nearest to 39.5
        ("I;16", [(90, 200)], (48, 1)),
        ("RGB", [(250, 250)], (64, 3)),  # never above 64
        ("P", [(100, 150)], (48, 3)),
    ],
)
def test_size_and_colours_that_suit_images(mode, sizes, expected):
    color = {"RGB": "orange", "P": 0}.get(mode, 1)

    def image(size):
        made = Image.new(mode, size, color)
        if mode == "P":
            made.putpalette([200, 20, 20])
        return made

    def damaged():
        raise OSError("half of the file is missing")

    sample = [damaged, *(partial(image, size) for size in sizes)]
    assert decoding.natural_form(sample) == expected


def test_grey_in_colour_channels_is_grey():
    noisy = np.random.default_rng(0).integers(0, 250, (64, 64, 1)) + np.array([0, 4, 5])
    image = Image.fromarray(noisy.astype(np.uint8))
    assert decoding.natural_form([lambda: image]) == (32, 1)
    assert decoding.natural_form([]) == (32, 1)

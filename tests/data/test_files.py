"""Image files as people have them: what is seen of each, what is refused, and what is not read."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from standin_files import load

from autoaug_ray import data
from autoaug_ray.data import files
from autoaug_ray.data.files import read_image
from autoaug_ray.errors import UserError
from autoaug_ray.settings.dataset import Dataset

ORIENTATION = 0x0112
GREY = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
SHOWN = {
    1: GREY, 2: GREY[:, ::-1], 3: GREY[::-1, ::-1], 4: GREY[::-1], 5: GREY.T,
    6: np.rot90(GREY, -1), 7: GREY[::-1, ::-1].T, 8: np.rot90(GREY),
}  # fmt: skip
"""How the EXIF standard shows an image of each orientation."""


def as_file(image, kind="PNG", **more):
    file = io.BytesIO()
    image.save(file, kind, **more)
    file.seek(0)
    return file


def seen(file, channels=1, size=None, **more):
    return read_image(file, "it", size, channels, more.pop("fit", "stretch"), **more)


@pytest.mark.parametrize("orientation", SHOWN)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_images_are_turned_as_their_exif_says(orientation, kind):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    more = {"lossless": True} if kind == "WEBP" else {}
    file = as_file(Image.fromarray(GREY).convert("RGB"), kind, exif=exif, **more)
    assert np.array_equal(seen(file)[0], SHOWN[orientation])
    file.seek(0)
    part = seen(file, box=(1, 0, 3, 2))
    assert np.array_equal(part[0], SHOWN[orientation][:2, 1:3]), "a box is of what is seen"


def test_a_photograph_that_was_held_upright_is_upright_when_it_is_decoded_small():
    pixels = np.zeros((512, 512), np.uint8)
    pixels[:, :256] = 255
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    upright = seen(as_file(Image.fromarray(pixels), "JPEG", exif=exif), size=8)[0]
    assert (upright[:3] > 250).all() and (upright[5:] < 5).all()


def test_an_exif_block_that_is_damaged_says_nothing():
    exif = b"Exif\0\0II*\0" + b"\xff" * 20
    file = as_file(Image.fromarray(GREY), "PNG", exif=exif)
    assert np.array_equal(seen(file)[0], GREY)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB", "L"])
def test_transparent_images_lie_on_white(mode):
    """A black shape, whose form is in its transparency alone."""
    alpha = np.tile(np.array([0, 51, 102, 255], np.uint8), (4, 1))
    if mode in ("RGBA", "LA"):
        image = Image.new(mode, (4, 4))
        image.putalpha(Image.fromarray(alpha))
        file, wanted = as_file(image), 255 - alpha.astype(int)
    else:  # one colour is transparent, as in a PNG's tRNS
        alpha = np.where(alpha > 60, 255, 0).astype(np.uint8)
        image = Image.fromarray(np.where(alpha, 0, 100).astype(np.uint8)).convert(mode)
        clear = image.getpixel((0, 0))
        file, wanted = as_file(image, transparency=clear), 255 - alpha.astype(int)
    for channels in (1, 3):
        file.seek(0)
        found = seen(file, channels)
        assert found.shape == (channels, 4, 4)
        assert np.abs(found.astype(int) - wanted).max() <= 1


def twelve_bits(values):
    """A TIFF of one row and two pixels of 12 bits."""
    packed = (values[0] << 12 | values[1]).to_bytes(3, "big")
    tags = [(256, 2), (257, 1), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1),
            (279, 3)]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 3, 1, value) for tag, value in tags)
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    return io.BytesIO(b"II*\0" + struct.pack("<I", 12) + packed + b"\0" + directory)


def test_deep_grey_is_scaled_by_its_depth():
    levels = np.arange(256, dtype=np.uint16).reshape(16, 16)
    deep = Image.fromarray(levels * 257)
    for kind in ("PNG", "TIFF", "PPM"):
        for channels in (1, 3):
            assert (seen(as_file(deep, kind), channels) == levels).all()
    floats = as_file(Image.fromarray((levels / 255).astype(np.float32)), "TIFF")
    assert (seen(floats)[0] == levels).all()
    assert seen(twelve_bits([0xFFF, 0x808])).tolist() == [[[255, 128]]]
    clear = as_file(deep, transparency=int(levels[3, 5]) * 257)
    assert (seen(clear)[0] == np.where(levels == levels[3, 5], 255, levels)).all()


@pytest.mark.parametrize(
    ("pixels", "words"),
    [(np.full((2, 2), 7, np.int32), "integers of 32 bits; save it with 8 or 16 bits"),
     (np.full((2, 2), 200, np.float32), r"floating-point values are not all in \[0, 1\]"),
     (np.full((2, 2), np.nan, np.float32), r"not all in \[0, 1\]")],
)  # fmt: skip
def test_pixels_whose_white_is_not_known_are_refused(pixels, words):
    with pytest.raises(UserError, match=f"^it cannot be read as an image .*{words}"):
        seen(as_file(Image.fromarray(pixels), "TIFF"))


def test_one_file_opens_images_for_all_readers():
    for path in Path(data.__file__).parent.glob("*.py"):
        assert "Image.open(" not in path.read_text() or path.name == "files.py", path


def test_letterbox_keeps_all_of_an_image_between_bars_of_grey():
    white = Image.new("RGB", (80, 40), "white")
    for image, turn in ((white, False), (white.transpose(Image.Transpose.ROTATE_90), True)):
        found = seen(as_file(image), 3, 20, fit="letterbox")
        rows = found.transpose(0, 2, 1) if turn else found
        assert (rows[:, 5:15] == 255).all()
        assert (rows[:, :5] == files.PADDING).all() and (rows[:, 15:] == files.PADDING).all()
    assert seen(as_file(white), 1, 20, fit="letterbox").shape == (1, 20, 20)


def picture(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng([seed, *str(path).encode()]).integers(0, 255, (9, 9, 3))
    Image.fromarray(pixels.astype(np.uint8)).save(path, "PNG")


@pytest.fixture
def flat(tmp_path):
    for name in ("cat", "dog"):
        for i in range(6):
            picture(tmp_path / "mine" / name / f"{i}.png")
    return tmp_path / "mine"


def read(root, **more):
    return load(Dataset(name="folder", root=str(root), image_size=8, **more))


def huge(path):
    Image.new("1", (1, 1)).save(path, "PNG")
    whole = path.read_bytes()
    head = b"IHDR" + struct.pack(">II", 13_000, 13_000) + whole[24:29]
    path.write_bytes(whole[:12] + head + struct.pack(">I", zlib.crc32(head)) + whole[33:])


def damaged(path):
    path.write_bytes(path.read_bytes()[:60])


FAULTS = {
    "pipe": (os.mkfifo, "it is no regular file"),
    "link to nowhere": (lambda path: path.symlink_to("nowhere"), "No such file"),
    "not allowed": (lambda path: picture(path), "Permission denied"),
    "huge": (huge, "it has 13000 x 13000 pixels, and at most"),
    "damaged": (lambda path: (picture(path), damaged(path)), "truncated|broken"),
    "crash": (lambda path: picture(path), "decoder error -2"),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_that_cannot_be_read_is_named_or_skipped(flat, fault, monkeypatch):
    make, words = FAULTS[fault]
    bad = flat / "cat/bad.png"
    make(bad)
    error = {"not allowed": PermissionError(13, "Permission denied"),
             "crash": RuntimeError("decoder error -2")}.get(fault)  # fmt: skip
    if error is not None:
        original = Image.open

        def fails(file):
            if str(file) == str(bad):
                raise error
            return original(file)

        monkeypatch.setattr(Image, "open", fails)
    with pytest.raises(UserError, match=rf"cat/bad\.png cannot be read as an image \(.*({words})"):
        read(flat, test_fraction=0.5)
    skip = {"test_fraction": 0.5, "unreadable": "skip"}
    splits = read(flat, **skip)
    assert sum(map(len, (splits.train, splits.val, splits.test))) == 12
    note = f"1 images cannot be read: {bad}."
    assert data.source_of(Dataset(name="folder", root=str(flat), image_size=8, **skip)).notes == (
        note,
    )


def test_a_folder_that_may_not_be_listed_is_named(flat, monkeypatch):
    original = os.scandir

    def fails(place):
        if str(place).endswith("dog"):
            raise PermissionError(13, "Permission denied")
        return original(place)

    monkeypatch.setattr(os, "scandir", fails)
    with pytest.raises(UserError, match=r"mine/dog cannot be listed \(Permission denied\)"):
        read(flat, test_fraction=0.5)


@pytest.mark.parametrize("names", [("Train", "valid", "TEST"), ("training", "Validation", "test")])
def test_parts_have_their_usual_names(tmp_path, names):
    for part, count in zip(names, (4, 2, 3), strict=True):
        for name in ("cat", "dog"):
            for i in range(count):
                picture(tmp_path / part / name / f"{i}.png")
    picture(tmp_path / "more/cat/0.png")
    splits = read(tmp_path)
    assert [len(s) for s in (splits.train, splits.val, splits.test)] == [8, 4, 6]
    source = data.source_of(Dataset(name="folder", root=str(tmp_path), image_size=8))
    assert source.notes == ("Folders that are not read, as they are no part: more.",)
    with pytest.raises(UserError, match=f"has its own {names[0]}/ and {names[2]}/: leave it out"):
        read(tmp_path, test_fraction=0.2)
    picture(tmp_path / "val/cat/0.png")
    with pytest.raises(UserError, match="and .*each of which may be its val part"):
        read(tmp_path)


def test_parts_without_a_test_part_are_no_classes(tmp_path):
    for part in ("train", "val"):
        for name in ("cat", "dog"):
            picture(tmp_path / part / name / "0.png")
    with pytest.raises(UserError, match="holds train/ and val/, which are parts rather than class"):
        read(tmp_path, test_fraction=0.5)


def test_what_systems_leave_is_no_image_and_what_is_not_read_is_said(flat):
    before = read(flat, test_fraction=0.5)
    for place in (".ipynb_checkpoints/0.png", "cat/.ipynb_checkpoints/1.png", "cat/._0.png",
                  "__MACOSX/cat/0.png", "dog/Thumbs.db", ".DS_Store"):  # fmt: skip
        picture(flat / place)
    for place in ("cat/a.heic", "cat/b.HEIC", "dog/readme.txt", "dog/more/c", "loose.png"):
        picture(flat / place)
    after = read(flat, test_fraction=0.5)
    assert after.classes == ("cat", "dog")
    for role in ("train", "val", "test"):
        assert (getattr(after, role).images == getattr(before, role).images).all()
    source = data.source_of(Dataset(name="folder", root=str(flat), image_size=8, test_fraction=0.5))
    assert source.notes == (
        "4 files are not read, as their ending is none of an image that is: 2 .heic, 1 none, "
        f"1 .txt ({flat}/cat/a.heic for one).",
        f"1 images are not read, as they are in no class: {flat}/loose.png.",
    )

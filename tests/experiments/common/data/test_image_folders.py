"""Images in folders and archives: pixels and labels as drawn, errors by name."""

import io
import os
import shutil
import struct
import tarfile
import zipfile
import zlib

import numpy as np
import pytest

pytest.importorskip("PIL")

from PIL import Image

from experiments.common.data import image_folders
from experiments.common.data.catalog import load_data
from experiments.common.data.image_folders import load_image_folder

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (6, 4, 5, 3), dtype=np.uint8)
GREYS = RNG.integers(0, 256, (6, 4, 5), dtype=np.uint8)
# In an order that is neither that of the names nor that of the classes.
NAMES = (
    *("train/dog/2.png", "train/cat/1.png", "test/dog/1.png"),
    *("train/dog/1.png", "test/cat/1.png", "train/cat/0.PNG"),
)
TRAIN, TEST = [5, 1, 3, 0], [4, 2]  # of NAMES, by class and name


def encoded(pixels, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def files_of(pixels):
    return {name: encoded(row) for name, row in zip(NAMES, pixels, strict=True)}


def write(kind, path, files):
    """Writes files into a folder or an archive, and returns where it is."""
    if kind == "folder":
        for name, content in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(content)
        return path
    path = path.with_name(f"{path.name}.{kind}")
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return path
    with tarfile.open(path, f"w:{kind.partition('.')[2]}") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXMEDIAN_CACHE", str(tmp_path / "cache"))


def deep_png():
    """A PNG of 16 bits a colour, by the specification: Pillow writes none."""

    def chunk(kind, content):
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    height, width, _ = COLOURS[0].shape
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in COLOURS[0])
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(kind, content)
        for kind, content in (
            (b"IHDR", header),
            (b"IDAT", zlib.compress(rows)),
            (b"IEND", b""),
        )
    )


KINDS = ("folder", "zip", "tar", "tar.gz", "tar.xz")


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_and_labels_are_those_that_were_drawn(kind, tmp_path):
    others = {"README": b"words", "train/cat/notes.txt": b"", "train/._0.png": b"x"}
    hidden = {"__MACOSX/train/cat/0.png": b"x", "test/dog/._1.png": b"x"}
    files = files_of(COLOURS) | others | hidden
    data = load_image_folder(write(kind, tmp_path / "pets", files))
    np.testing.assert_array_equal(data.train_images, COLOURS[TRAIN], strict=True)
    np.testing.assert_array_equal(data.test_images, COLOURS[TEST], strict=True)
    assert data.train_labels.tolist() == [0, 0, 1, 1]
    assert data.test_labels.tolist() == [0, 1]
    assert data.train_labels.dtype == np.int32
    assert data.description.startswith("pets")
    assert data.description.endswith(", 2 classes of 5 x 4 pixels, PNG copies")


def test_a_folder_above_does_not_matter_and_grey_images_stay_grey(tmp_path):
    files = {f"all/pets/{name}": file for name, file in files_of(GREYS).items()}
    data = load_image_folder(write("tar", tmp_path / "pets", files))
    np.testing.assert_array_equal(data.train_images, GREYS[TRAIN], strict=True)


def test_grey_images_among_coloured_ones_get_three_equal_colours(tmp_path):
    files = files_of([*COLOURS[:5], GREYS[5]])
    data = load_image_folder(write("zip", tmp_path / "pets", files))
    assert (data.train_images[0] == GREYS[5][..., None]).all()
    np.testing.assert_array_equal(data.train_images[1:], COLOURS[TRAIN[1:]])


def test_copies_of_cifar10_are_called_so(tmp_path):
    pixels = np.full((32, 32, 3), 128, np.uint8)
    files = {
        f"{part}/{label}/0.jpg": encoded(pixels, "JPEG")
        for part in ("train", "test")
        for label in image_folders._CIFAR10
    }
    data = load_image_folder(write("tar.xz", tmp_path / "x", files))
    assert data.description == "CIFAR-10, JPEG copies"
    assert data.train_labels.tolist() == list(range(10))


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_images_are_decoded_once_unless_they_change(kind, tmp_path, monkeypatch):
    decoded = []
    pixels = image_folders._pixels
    monkeypatch.setattr(
        image_folders, "_pixels", lambda *a: decoded.append(a[2]) or pixels(*a)
    )
    path = write(kind, tmp_path / "pets", files_of(COLOURS))
    elsewhere = path.with_name(f"moved {path.name}")
    for _ in range(2):
        first = load_image_folder(path)
    path.rename(elsewhere)
    again = load_image_folder(elsewhere)
    assert len(decoded) == len(NAMES)
    np.testing.assert_array_equal(first.train_images, again.train_images)
    shutil.rmtree(elsewhere) if kind == "folder" else elsewhere.unlink()
    write(kind, path.with_suffix(""), files_of(COLOURS[::-1]))
    changed = load_image_folder(path)
    np.testing.assert_array_equal(changed.train_images, COLOURS[::-1][TRAIN])


def without(*names):
    return {name: file for name, file in files_of(COLOURS).items() if name not in names}


WRONG = {
    "pets holds no images: train/<class>/": {"README": b"", "cat/1.png": b""},
    "no image in test/ of these classes: dog": without("test/dog/1.png"),
    "no image in train/ of these classes: cat": without(
        "train/cat/1.png", "train/cat/0.PNG"
    ),
    "train/dog/2.png has 5 x 4 pixels, test/cat/9.png 4 x 3": files_of(COLOURS)
    | {"test/cat/9.png": encoded(COLOURS[0, :3, :4])},
    "test/cat/9.jpg cannot be decoded .cannot identify image file test/": files_of(
        COLOURS
    )
    | {"test/cat/9.jpg": b"GIF"},
    "train/cat/7.png cannot be decoded": files_of(COLOURS)
    | {"train/cat/7.png": encoded(COLOURS[0])[:60]},
    "train/cat/8.png cannot be decoded .more than 8 bits": files_of(COLOURS)
    | {"train/cat/8.png": encoded(GREYS[0].astype(np.uint16))},
    "train/cat/6.png cannot be decoded .more than 8 bits": files_of(COLOURS)
    | {"train/cat/6.png": deep_png()},
    "left out, 2 of them, train/dog/black/1.png first": files_of(COLOURS)
    | {f"train/dog/black/{i}.png": encoded(COLOURS[i]) for i in (1, 2)},
    "left out, 1 of them, train/3.png first": files_of(COLOURS)
    | {"train/3.png": encoded(COLOURS[0])},
    "left out, 2 of them, test/cat/5.bmp first": files_of(COLOURS)
    | {
        f"test/cat/5.{kind}": encoded(COLOURS[0], kind.upper())
        for kind in ("bmp", "webp")
    },
}


@pytest.mark.parametrize("kind", ["folder", "zip", "tar.gz"])
@pytest.mark.parametrize("message", WRONG)
def test_what_is_wrong_is_named(message, kind, tmp_path):
    path = write(kind, tmp_path / "pets", WRONG[message])
    message = message.replace("pets holds", "pets.* holds")
    named = message.replace("train/dog/2.png", "[a-z/0-9.A-Z]+")
    with pytest.raises(ValueError, match=named):
        load_image_folder(path)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_half_an_archive_is_refused_by_name(kind, tmp_path):
    path = write(
        kind,
        tmp_path / "pets",
        files_of(RNG.integers(0, 255, (6, 64, 64, 3)).astype(np.uint8)),
    )
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=f"pets.{kind} cannot be read"):
        load_image_folder(path)


@pytest.mark.parametrize("link", ["train/cat", "test", "train/dog/1.png"])
def test_links_of_a_folder_are_followed_and_those_of_an_archive_refused(link, tmp_path):
    path = write("folder", tmp_path / "pets", files_of(COLOURS))
    (path / link).rename(tmp_path / "elsewhere.png")
    (path / link).symlink_to(tmp_path / "elsewhere.png")
    (path / "train" / "dog" / "above").symlink_to(path)  # would never end
    data = load_image_folder(path)
    np.testing.assert_array_equal(data.train_images, COLOURS[TRAIN])
    np.testing.assert_array_equal(data.test_images, COLOURS[TEST])
    (path / "train" / "dog" / "above").unlink()
    with tarfile.open(tmp_path / "pets.tar", "w") as tape:
        tape.add(path, "pets")
    with zipfile.ZipFile(tmp_path / "pets.zip", "w") as archive:
        for above, folders, files in os.walk(path):  # as `zip --symlinks` does
            for file in (os.path.join(above, name) for name in folders + files):
                info = zipfile.ZipInfo(os.path.relpath(file, tmp_path))
                info.external_attr = os.lstat(file).st_mode << 16
                if os.path.islink(file):
                    archive.writestr(info, os.readlink(file))
                elif not os.path.isdir(file):
                    archive.write(file, info.filename)
    for name in ("pets.tar", "pets.zip"):
        with pytest.raises(ValueError, match=f"{name} holds a link, pets/{link}: put"):
            load_image_folder(tmp_path / name)


def test_data_are_named_or_lie_somewhere(tmp_path):
    write("zip", tmp_path / "pets", files_of(GREYS))
    for place in ((str(tmp_path / "pets.zip"), None), ("pets.zip", tmp_path)):
        assert load_data(*place).train_images.shape == (4, 4, 5)
    with pytest.raises(ValueError, match=r"`data` must be one of .* got 'none.zip'"):
        load_data("none.zip", tmp_path)
    with pytest.raises(ValueError, match="`data_dir` must be a folder"):
        load_data("mnist", tmp_path / "none")

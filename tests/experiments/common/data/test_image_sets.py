"""The loaders against small archives, byte by byte as publishers describe them."""

import gzip
import hashlib
import io
import struct
import tarfile

import numpy as np
import pytest

from experiments.common.data import image_sets
from experiments.common.data.archives import Archive

RNG = np.random.default_rng(0)
IDX_ARRAYS = (
    RNG.integers(0, 256, size=(6, 28, 28), dtype=np.uint8),
    np.arange(6, dtype=np.uint8),
    RNG.integers(0, 256, size=(4, 28, 28), dtype=np.uint8),
    np.arange(4, dtype=np.uint8),
)


def idx(array):
    header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(
        f">{array.ndim}I", *array.shape
    )
    return gzip.compress(header + array.tobytes())


def cifar_rows(number, first_label):
    """Rows of label, then planes; pixel (row, column, colour) is known below."""
    rows = []
    for i in range(number):
        planes = [
            [(7 * r + 3 * c + 50 * colour + i) % 256 for r in range(32)]
            for colour in range(3)
            for c in [i]
        ]
        pixels = b"".join(bytes([value]) * 32 for plane in planes for value in plane)
        rows.append(bytes([(first_label + i) % 10]) + pixels)
    return b"".join(rows)


def cifar_archive(members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


CIFAR_MEMBERS = {
    **{f"data_batch_{i}.bin": cifar_rows(2, 2 * i) for i in range(1, 6)},
    "test_batch.bin": cifar_rows(3, 0),
}


def md5(content):
    return f"md5:{hashlib.md5(content).hexdigest()}"


# --- what the archives hold -----------------------------------------------------------


def idx_source(arrays):
    files = dict(zip(image_sets._IDX_NAMES, map(idx, arrays), strict=True))
    checksums = tuple(md5(content) for content in files.values())
    contents = tuple(
        hashlib.sha256(gzip.decompress(content)).hexdigest()
        for content in files.values()
    )
    archives = image_sets._idx_archives(checksums, contents, ())
    return files, image_sets._Source("Toys", "toy", archives)


def load_idx(folder, arrays=IDX_ARRAYS):
    files, source = idx_source(arrays)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return image_sets._load_idx(source, folder)


def test_idx_archives_become_rows_of_pixels(tmp_path):
    data = load_idx(tmp_path)
    np.testing.assert_array_equal(data.train_images, IDX_ARRAYS[0].reshape(6, 784))
    np.testing.assert_array_equal(data.test_images, IDX_ARRAYS[2].reshape(4, 784))
    np.testing.assert_array_equal(
        data.train_labels, IDX_ARRAYS[1].astype(np.int32), strict=True
    )
    assert data.test_labels.tolist() == [0, 1, 2, 3]
    assert data.train_images.dtype == np.uint8
    assert data.description == "Toys"


def test_idx_archives_that_do_not_belong_together_are_refused(tmp_path):
    arrays = (IDX_ARRAYS[0], IDX_ARRAYS[1][:-1], *IDX_ARRAYS[2:])
    with pytest.raises(ValueError, match="do not belong together"):
        load_idx(tmp_path, arrays)


@pytest.mark.parametrize("content", [b"", b"\0\0\x08", b"\0\0\x0d\x01\0\0\0\0"])
def test_what_is_no_idx_file_is_refused(content):
    with pytest.raises(ValueError, match="toys is no IDX file"):
        image_sets._read_idx(content, "toys")


def load_cifar(folder, members):
    content = cifar_archive(members)
    name = "cifar-10-binary.tar.gz"
    (folder / name).write_bytes(content)
    source = image_sets._Source("Toys", "cifar", (Archive(name, md5(content), ()),))
    return image_sets._load_cifar(source, folder)


def test_cifar_planes_become_pixels_of_three_colours(tmp_path):
    data = load_cifar(tmp_path, CIFAR_MEMBERS)
    assert [path.name for path in tmp_path.iterdir()] == ["cifar-10-binary.tar.gz"]
    assert data.train_images.shape == (10, 32, 32, 3)
    assert data.train_labels.tolist() == [2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert data.test_labels.tolist() == [0, 1, 2]
    for image in range(3):
        for row, column, colour in [(0, 0, 0), (5, 31, 1), (31, 7, 2), (17, 17, 0)]:
            expected = (7 * row + 3 * image + 50 * colour + image) % 256
            assert data.test_images[image, row, column, colour] == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test_batch.bin": None}, "holds no test_batch.bin"),
        ({"data_batch_3.bin": b"\0" * 3072}, "whole CIFAR-10 images"),
    ],
)
def test_incomplete_cifar_archives_are_refused(change, message, tmp_path):
    members = {k: v for k, v in (CIFAR_MEMBERS | change).items() if v is not None}
    with pytest.raises(ValueError, match=message):
        load_cifar(tmp_path, members)


def test_published_archives_are_named_with_checksums_and_mirrors():
    sources = (image_sets._MNIST, image_sets._FASHION_MNIST, image_sets._CIFAR10)
    archives = [archive for source in sources for archive in source.archives]
    assert len({archive.checksum for archive in archives}) == len(archives) == 9
    for archive in archives:
        algorithm, digest = archive.checksum.split(":")
        assert len(bytes.fromhex(digest)) == hashlib.new(algorithm).digest_size
        assert all(mirror.endswith("/") for mirror in archive.mirrors)
    contents = [archive.content for archive in archives[:8]]
    assert len({bytes.fromhex(content) for content in contents}) == 8
    assert {len(content) for content in contents} == {64}

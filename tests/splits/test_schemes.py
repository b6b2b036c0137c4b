"""Splits: every sample once, each scheme's own promise, over random label vectors.

The slow forms (a table counted by hand, a repair that moves one sample at a time) stand
beside the fast ones. All randomness is seeded here.
"""

import collections
import doctest
import importlib
import itertools
import math
import pickle
import sys
import warnings

import numpy as np
import pytest

from jaxmedian import splits
from jaxmedian.splits import Split, classes, grouping, holdings, proportions

EVEN_SCHEMES = ("iid", "shards", "similarity")
NEVER_EMPTY = (*EVEN_SCHEMES, "dirichlet", "quantity")


def random_labels(rng):
    """A label vector of some length, skew, type: mostly short, sometimes one class."""
    num_classes = int(rng.integers(1, 13))
    size = int(rng.choice([1, 2, rng.integers(1, 15), rng.integers(1, 200)]))
    weights = rng.dirichlet(np.full(num_classes, rng.choice([0.2, 1.0, 100.0])))
    labels = rng.choice(num_classes, size, p=weights)
    kind = rng.integers(6)
    if kind == 0:
        return labels.astype(np.uint8)
    if kind == 1:
        return (labels * 1000 - 3).tolist()
    if kind == 2:
        return np.array([f"class {label}" for label in labels])
    if kind == 3:
        return np.array([f"{label:b}" for label in labels], dtype=object)
    return labels


def random_split(name, labels, num_workers, rng):
    """Calls a scheme with random options; returns the split, options and warnings."""
    size, num_classes = len(labels), len(set(labels))
    options = {"seed": int(rng.integers(1000))}
    if name in ("dirichlet", "quantity"):
        options["alpha"] = float(10 ** rng.uniform(-3, 3))
        options["min_size"] = int(rng.integers(0, 6))
    if name == "similarity":
        options["s"] = float(rng.choice([0.0, 1.0, rng.random()]))
    if name == "shards" and rng.random() < 0.5 and size >= num_workers:
        options["shards_per_worker"] = int(rng.integers(1, size // num_workers + 1))
    if name == "by_label" and rng.random() < 0.5:
        fewest = math.ceil(num_classes / num_workers)
        options["classes_per_worker"] = int(rng.integers(fewest, num_classes + 1))
    if name == "natural":
        options["ids"] = rng.integers(0, num_workers, size)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        split = getattr(splits, name)(labels, num_workers, **options)
    return split, options, [str(warning.message) for warning in caught]


def rows_of(split):
    return [
        split.order[split.offsets[i] : split.offsets[i + 1]].tolist()
        for i in range(split.num_workers)
    ]


def table_by_hand(split, labels):
    return [
        collections.Counter(labels[sample] for sample in row) for row in rows_of(split)
    ]


# --- all schemes ----------------------------------------------------------------------

ALL = tuple(name for name in splits.__all__ if name != "Split")


@pytest.mark.parametrize("name", ALL)
def test_every_sample_once_no_worker_needlessly_empty(name):
    rng = np.random.default_rng(1)
    for _ in range(600):
        labels = random_labels(rng)
        num_workers = int(rng.choice([1, rng.integers(1, 8), rng.integers(1, 60)]))
        split, options, messages = random_split(name, labels, num_workers, rng)

        assert split.num_workers == num_workers
        assert sorted(split.order.tolist()) == list(range(len(labels)))
        assert split.sizes.sum() == len(labels)
        if name in EVEN_SCHEMES:
            shards = options.get("shards_per_worker", 2) if name == "shards" else 1
            assert np.ptp(split.sizes) <= shards
        if name in NEVER_EMPTY and len(labels) >= num_workers:
            floor = min(options.get("min_size", 1), len(labels) // num_workers)
            assert split.sizes.min() >= floor
        elif name in NEVER_EMPTY and options.get("min_size", 1):
            assert (split.sizes == 0).sum() == num_workers - len(labels)

        empty = np.flatnonzero(split.sizes == 0)
        said = [message for message in messages if "hold no sample" in message]
        assert len(said) == (empty.size > 0)
        if said:
            named = ", ".join(map(str, empty[:10]))
            assert f"{empty.size} of {num_workers} workers" in said[0]
            assert f": {named}" in said[0]


@pytest.mark.parametrize("name", ALL)
def test_same_seed_same_split_and_no_global_random_state(name):
    labels = np.arange(300) % 7
    labels.setflags(write=False)
    options = {"ids": np.arange(300) % 5} if name == "natural" else {}
    scheme = getattr(splits, name)
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first = scheme(labels, 5, seed=3, **options)
    assert first == scheme(labels.tolist(), 5, seed=np.int64(3), **options)
    assert first != scheme(labels, 5, seed=4, **options)
    np.testing.assert_array_equal(before, np.random.get_state()[1])  # noqa: NPY002


@pytest.mark.parametrize("name", ALL)
def test_order_inside_a_worker_is_random(name):
    """The first sample of a worker is an even draw from all that it holds."""
    options = {"ids": [0] * 40} if name == "natural" else {}
    labels = np.repeat([0, 1], 20)
    first = [
        getattr(splits, name)(labels, 1, seed=seed, **options).order[0]
        for seed in range(400)
    ]
    sigma = math.sqrt((40**2 - 1) / 12 / 400)
    assert abs(np.mean(first) - 19.5) < 5 * sigma
    assert len(set(first)) > 30


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("by_label", {"classes_per_worker": 1}),
        ("shards", {"shards_per_worker": 1}),
        ("dirichlet", {"alpha": 1e6}),
        ("similarity", {"s": 0.0}),
    ],
)
def test_which_samples_of_a_class_go_where_is_random(name, options):
    """One class, two workers, 20 samples each: the mean number at worker 0 is 19.5."""
    scheme, labels = getattr(splits, name), ["same"] * 40
    means = [
        np.mean(rows_of(scheme(labels, 2, seed=seed, **options))[0])
        for seed in range(400)
    ]
    # Of one mean: (40^2 - 1) / 12 / 20 with replacement, about half of it without.
    assert abs(np.mean(means) - 19.5) < 5 * math.sqrt(6.7 / 2 / 400)
    assert len(set(means)) > 100


@pytest.mark.parametrize("name", ALL)
def test_one_sample_and_many_workers(name):
    options = {"ids": ["a"]} if name == "natural" else {}
    with pytest.warns(UserWarning, match=r"6 of 7 workers .*worker_mask") as caught:
        split = getattr(splits, name)(["only"], 7, **options)
    assert caught[0].filename == __file__  # it points at the caller
    assert split.sizes.sum() == 1
    assert split.indices.tolist() == [[0]] * 7
    assert split.mask.sum() == 1


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("num_classes", [1, 10, 2500])
def test_a_thousand_workers(name, num_classes):
    rng = np.random.default_rng(5)
    labels = rng.integers(0, num_classes, 20_000)
    options = {"ids": rng.integers(0, 1000, 20_000)} if name == "natural" else {}
    if name in ("dirichlet", "quantity"):
        options = {"alpha": 1e-3, "min_size": 10}
    split = getattr(splits, name)(labels, 1000, **options)
    assert sorted(split.order.tolist()) == list(range(20_000))
    assert split.sizes.min() >= (10 if "alpha" in options else 1)


# --- iid, similarity, natural ---------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options"), [("iid", {}), ("similarity", {"s": 1.0}), ("quantity", {})]
)
def test_iid_workers_draw_without_regard_to_label(name, options):
    """Worker 0's samples of class 1 are hypergeometric: 80 of 200 samples are such."""
    labels = np.repeat([0, 1], [120, 80])
    deviations = []
    for seed in range(400):
        split = getattr(splits, name)(labels, 4, seed=seed, **options)
        drawn = split.sizes[0]
        variance = drawn * 0.4 * 0.6 * (200 - drawn) / 199
        if variance:
            ones = labels[rows_of(split)[0]].sum()
            deviations.append((ones - 0.4 * drawn) / math.sqrt(variance))
    assert len(deviations) > 300
    assert abs(np.mean(deviations)) < 5 / math.sqrt(len(deviations))
    # The variance of a squared standardised count is at most about 3.
    assert abs(np.var(deviations) - 1) < 5 * math.sqrt(3 / len(deviations))


def test_similarity_zero_is_sorted_in_blocks():
    labels = np.random.default_rng(0).integers(0, 9, 101)
    rows = rows_of(splits.similarity(labels, 8, s=0.0))
    for row, following in itertools.pairwise(rows):
        assert labels[row].max() <= labels[following].min()


def test_similarity_dials_the_divergence():
    labels = np.repeat(np.arange(10), 1000)
    for s in (0.0, 0.25, 0.5, 1.0):
        split = splits.similarity(labels, 10, s=s)
        # Worker i: a share 1 - s of class i (blocks of the rest end within a few
        # samples of the class), s of the mixture.
        assert split.label_divergence(labels) == pytest.approx(0.9 * (1 - s), abs=0.05)


def test_natural_integer_ids_name_their_worker():
    ids = np.array([3, 0, 3, 1], np.uint8)
    with pytest.warns(UserWarning, match="1 of 4 workers hold no sample: 2"):
        split = splits.natural([0, 0, 1, 1], 4, ids=ids)
    assert [sorted(row) for row in rows_of(split)] == [[1], [3], [], [0, 2]]


@pytest.mark.parametrize("ids", [["b", "a", "b", "c"], [20, 10, 20, 30], [0, -1, 0, 2]])
def test_natural_other_ids_are_groups_in_sorted_order(ids):
    split = splits.natural([0, 0, 1, 1], 3, ids=ids)
    assert [sorted(row) for row in rows_of(split)] == [[1], [0, 2], [3]]


# --- by_label -------------------------------------------------------------------------


def test_by_label_keeps_its_promise():
    rng = np.random.default_rng(2)
    for _ in range(1000):
        labels = random_labels(rng)
        num_workers = int(rng.integers(1, 30))
        split, options, _ = random_split("by_label", labels, num_workers, rng)
        table = table_by_hand(split, labels)
        class_sizes = collections.Counter(labels)
        num_classes = len(class_sizes)
        k = options.get("classes_per_worker", math.ceil(num_classes / num_workers))

        assert max(map(len, table)) <= k
        for label, size in class_sizes.items():
            shares = [row[label] for row in table if row[label]]
            if num_workers * k <= num_classes:
                assert len(shares) == 1
            places = num_workers * k / num_classes
            if "classes_per_worker" in options or num_workers >= num_classes:
                fewest = min(size, math.floor(places))
                assert fewest <= len(shares) <= math.ceil(places)
                assert max(shares) - min(shares) <= 1
                assert max(shares) == 1 or len(shares) >= math.floor(places)


def test_by_label_one_class_each_in_order():
    labels = np.array(list("cabcabbb"))
    _, counts = splits.by_label(labels, 3).label_table(labels)
    np.testing.assert_array_equal(counts, np.diag([2, 4, 2]))


def test_by_label_every_worker_gets_exactly_k_classes():
    labels = np.repeat(np.arange(10), 30)
    for num_workers, k in [(10, 3), (5, 2), (7, 10), (30, 1), (4, 5)]:
        split = splits.by_label(labels, num_workers, classes_per_worker=k)
        _, counts = split.label_table(labels)
        assert ((counts > 0).sum(axis=1) == k).all()
        assert np.ptp((counts > 0).sum(axis=0)) <= 1


def test_by_label_seed_picks_who_shares():
    """15 workers, 10 classes: which 5 classes have two workers depends on the seed."""
    labels = np.repeat(np.arange(10), 8)
    shared = [
        tuple(
            (splits.by_label(labels, 15, seed=seed).label_table(labels)[1] > 0).sum(0)
        )
        for seed in range(5)
    ]
    assert all(sorted(row) == [1] * 5 + [2] * 5 for row in shared)
    assert len(set(shared)) > 1


def test_by_label_remainders_do_not_pile_up():
    """All classes at all workers, 11 samples each: worker c has class c's eleventh."""
    labels = np.repeat(np.arange(10), 11)
    assert np.ptp(splits.by_label(labels, 10, classes_per_worker=10).sizes) == 0


def test_by_label_check_catches_a_broken_split():
    codes = np.array([0, 0, 0, 0, 1, 1])
    place_class = np.array([0, 0, 1])  # class 0 at two workers, class 1 at one

    def check(order, offsets):
        classes.check_classes(Split(order, offsets), codes, place_class)

    check([0, 1, 2, 3, 4, 5], [0, 2, 4, 6])
    with pytest.raises(RuntimeError, match="at most k classes a worker"):
        check([0, 4, 2, 3, 1, 5], [0, 2, 4, 6])
    with pytest.raises(RuntimeError, match="no worker with a class of others"):
        check([0, 4, 2, 3, 1, 5], [0, 2, 4, 6])
    with pytest.raises(RuntimeError, match="shared out evenly"):
        check([0, 1, 2, 3, 4, 5], [0, 3, 4, 6])
    with pytest.raises(RuntimeError, match="shared out evenly"):
        check([0, 1, 2, 3, 4, 5], [0, 4, 4, 6])


# --- shards ---------------------------------------------------------------------------


def test_shards_are_contiguous_in_the_sorted_line():
    """Equal classes, shards that divide them: at most one class a shard, 200 shards."""
    labels = np.repeat(np.arange(10), 60)
    split = splits.shards(labels, 100)
    _, counts = split.label_table(labels)
    assert (split.sizes == 6).all()
    assert set(np.unique(counts)) == {0, 3, 6}
    assert ((counts > 0).sum(axis=1) == 2).any()
    three = splits.shards(labels, 100, shards_per_worker=3)
    assert (three.label_table(labels)[1] > 0).sum(axis=1).max() == 3


def test_shards_default_falls_back_to_one_before_emptying_workers():
    assert splits.shards([0, 1] * 7, 10).sizes.min() == 1
    assert np.ptp(splits.shards([0, 1] * 10, 10).sizes) == 0


# --- dirichlet ------------------------------------------------------------------------


def test_dirichlet_moments_per_class_over_workers():
    """A share is Beta(a, (M - 1) a): E p = 1/M, E p^2 = (a + 1) / (M (M a + 1))."""
    alpha, num_workers, num_classes = 0.3, 5, 4000
    labels = np.repeat(np.arange(num_classes), 60)
    split = splits.dirichlet(labels, num_workers, alpha=alpha, min_size=0)
    _, counts = split.label_table(labels)
    for share in counts / 60:
        moments = [
            math.prod((alpha + r) / (num_workers * alpha + r) for r in range(power))
            for power in range(5)
        ]
        # Rounding to sixtieths adds at most (1/2)^2 / 60^2 to the second moment.
        for power, slack in ((1, 0.0), (2, 0.25 / 60**2)):
            variance = moments[2 * power] - moments[power] ** 2
            tolerance = 5 * math.sqrt(variance / num_classes) + slack
            assert abs((share**power).mean() - moments[power]) < tolerance


def test_dirichlet_rounding_favours_no_worker():
    """Classes of one sample go to each worker equally often."""
    sizes = splits.dirichlet(np.arange(8000), 4, alpha=1.0, min_size=0).sizes
    assert abs(sizes - 2000).max() < 5 * math.sqrt(8000 * 0.25 * 0.75)


@pytest.mark.filterwarnings("ignore:.*hold no sample")
def test_dirichlet_limits_of_alpha():
    labels = np.repeat(np.arange(10), 500)
    for alpha in (5e-324, 1e-300, 1e-12, 1e-4):
        split = splits.dirichlet(labels, 10, alpha=alpha, min_size=0, seed=3)
        _, counts = split.label_table(labels)
        assert ((counts > 0).sum(axis=0) <= 2).all()
        assert (counts.max(axis=0) >= 495).all()
    for alpha in (1e6, 1e300):
        _, counts = splits.dirichlet(labels, 10, alpha=alpha).label_table(labels)
        assert abs(counts - 50).max() <= 2


@pytest.mark.filterwarnings("ignore:.*hold no sample")
def test_dirichlet_repair_moves_no_more_than_it_must():
    labels = np.repeat(np.arange(4), 100)
    for seed in range(50):
        free = splits.dirichlet(labels, 9, alpha=0.1, min_size=0, seed=seed)
        repaired = splits.dirichlet(labels, 9, alpha=0.1, min_size=7, seed=seed)
        need = np.maximum(7 - free.sizes, 0).sum()
        stayed = sum(
            len(set(before) & set(after))
            for before, after in zip(rows_of(free), rows_of(repaired), strict=True)
        )
        assert stayed == 400 - need
        assert repaired.sizes.min() == max(free.sizes.min(), 7)
        assert need or free == repaired


def test_repair_moves_random_samples_of_the_donor():
    worker = np.zeros(100, np.int64)
    moved = [
        np.flatnonzero(
            proportions.repair(worker, np.array([50, 50]), np.random.default_rng(seed))
        ).mean()
        for seed in range(200)
    ]
    sigma = math.sqrt((100**2 - 1) / 12 / 50 * 50 / 99 / 200)
    assert abs(np.mean(moved) - 49.5) < 5 * sigma
    assert len(set(moved)) > 100


def test_repaired_sizes_equal_the_slow_repair():
    """Move one sample at a time from the largest worker to one below its floor."""
    rng = np.random.default_rng(4)
    for _ in range(1000):
        num_workers = int(rng.integers(1, 12))
        sizes = rng.multinomial(rng.integers(1, 80), rng.dirichlet([0.2] * num_workers))
        floors = np.minimum(
            grouping.even_sizes(sizes.sum(), num_workers), rng.integers(0, 9)
        )
        slow = sizes.copy()
        while (slow < floors).any():
            slow[np.argmax(np.where(slow > floors, slow, -1))] -= 1
            slow[np.flatnonzero(slow < floors)[0]] += 1
        fast = proportions._repaired_sizes(sizes, floors)
        assert sorted(fast) == sorted(slow)
        assert (fast >= floors).all()
        assert (fast[sizes >= floors] <= sizes[sizes >= floors]).all()


def test_min_size_beyond_the_samples_shares_evenly_and_says_so():
    with pytest.warns(UserWarning, match="needs 50 samples and there are 23") as caught:
        split = splits.dirichlet([0] * 23, 5, alpha=0.01, min_size=10)
    assert caught[0].filename == __file__
    assert sorted(split.sizes) == [4, 4, 5, 5, 5]


def test_quantity_is_uneven():
    split = splits.quantity([0] * 10_000, 10, alpha=0.5)
    assert np.ptp(split.sizes) > 500


# --- Split ----------------------------------------------------------------------------


def test_indices_and_mask_are_the_rows_padded_with_own_samples():
    rng = np.random.default_rng(6)
    for _ in range(300):
        labels = random_labels(rng)
        num_workers = int(rng.integers(1, 12))
        split, _, _ = random_split("natural", labels, num_workers, rng)
        rows = rows_of(split)
        width = max(map(len, rows))
        assert split.indices.shape == split.mask.shape == (num_workers, width)
        assert split.indices.dtype == np.int32
        assert split.mask.dtype == bool
        for row, indices, mask in zip(rows, split.indices, split.mask, strict=True):
            assert indices[mask].tolist() == row
            assert mask.tolist() == [True] * len(row) + [False] * (width - len(row))
            assert set(indices) <= set(row or range(len(labels)))


def test_arrays_are_read_only_copies():
    order = np.array([1, 0, 2])
    split = Split(order, np.array([0, 1, 3]))
    order[:] = 7
    assert split.order.tolist() == [1, 0, 2]
    for array in (split.order, split.offsets, split.indices, split.mask):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    with pytest.raises(AttributeError):
        split.order = order


def test_equality_hash_and_pickle():
    split = splits.iid([0, 1, 2, 3, 4], 2)
    assert {split: "found"}[splits.iid([0, 1, 2, 3, 4], 2)] == "found"
    assert pickle.loads(pickle.dumps(split)) == split
    assert split != Split(split.order, [0, 2, 5])
    assert split != "a split"


def test_too_many_cells_is_an_error_that_says_so(monkeypatch):
    uneven = Split(np.arange(200_000), np.r_[0, np.full(1000, 200_000)])
    for rectangle in ("indices", "mask"):
        with pytest.raises(ValueError, match=r"200,000,000 cells.*100,000,000"):
            getattr(uneven, rectangle)
    monkeypatch.setattr(holdings, "MAX_CELLS", 6)
    split = Split([0, 1, 2, 3], [0, 1, 4])
    assert split.indices.shape == (2, 3)
    with pytest.raises(ValueError, match="distinct values"):
        split.label_table([0, 1, 2, 3])


@pytest.mark.parametrize(
    ("order", "offsets", "error"),
    [
        ([], [0, 0], ValueError),
        ([0, -1], [0, 2], ValueError),
        ([0, 1], [0], ValueError),
        ([0, 1], [1, 2], ValueError),
        ([0, 1], [0, 1], ValueError),
        ([0, 1], [0, 2, 1, 2], ValueError),
        ([[0, 1]], [0, 2], ValueError),
        ([0.0, 1.0], [0, 2], TypeError),
        ([False, True], [0, 2], TypeError),
    ],
)
def test_split_refuses_broken_arrays(order, offsets, error):
    with pytest.raises(error, match=r"`(order|offsets)`"):
        Split(order, offsets)


# --- the table ------------------------------------------------------------------------


def test_label_table_and_divergence_equal_the_slow_form():
    rng = np.random.default_rng(7)
    for _ in range(300):
        labels = random_labels(rng)
        split, _, _ = random_split("natural", labels, int(rng.integers(1, 9)), rng)
        by_hand = table_by_hand(split, labels)
        values, counts = split.label_table(labels)
        assert values.tolist() == sorted(set(np.asarray(labels).tolist()))
        assert counts.tolist() == [
            [row[value] for value in values.tolist()] for row in by_hand
        ]
        overall = collections.Counter(labels)
        distances = [
            sum(
                abs(row[value] / row.total() - overall[value] / len(labels))
                for value in overall
            )
            / 2
            for row in by_hand
            if row
        ]
        expected = sum(distances) / len(distances)
        assert split.label_divergence(labels) == pytest.approx(expected, abs=1e-12)


def test_divergence_of_one_class_each():
    labels = np.repeat(np.arange(8), 5)
    split = splits.by_label(labels, 8)
    assert split.label_divergence(labels) == pytest.approx(1 - 1 / 8)
    assert splits.iid(labels, 1).label_divergence(labels) == 0.0


def test_describe_aligns_and_abridges():
    labels = np.arange(5000) % 40
    split = splits.iid(labels, 1000)
    text = split.describe(labels, max_workers=8, max_labels=5)
    lines = text.splitlines()
    assert lines[0] == "5000 samples, 1000 workers of 5 to 5 samples, 40 labels"
    assert lines[1].split() == ["worker", "size", "|", "0", "1", "2", "3", "4", "+35"]
    rows = [line for line in lines if " | " in line]
    assert len({len(row) for row in rows}) == 1
    assert [row.split()[0] for row in rows[1:]] == [
        *("0", "1", "2", "3", "4", "997", "998", "999", "all")
    ]
    assert lines[7] == "... 992 more workers ..."
    assert rows[-1].split()[1:] == ["5000", "|", *["125"] * 5, "4375"]
    assert lines[-1].startswith(
        f"label divergence {split.label_divergence(labels):.3f}: "
    )
    assert all(len(line) <= 88 for line in lines)


def test_describe_at_its_smallest():
    labels = np.arange(50) % 5
    lines = splits.iid(labels, 10).describe(labels, max_workers=2, max_labels=1)
    names = [line.split()[0] for line in lines.splitlines()[1:-1]]
    assert names == ["worker", "0", "...", "9", "all"]


def test_describe_mentions_empty_workers():
    split = Split([0, 1], [0, 0, 2])
    assert "1 workers are empty" in split.describe(["a", "b"])


def test_labels_must_be_those_of_the_split():
    split = splits.iid([0, 1, 2], 2)
    for wrong in ([0, 1], [0, 1, 2, 3]):
        with pytest.raises(ValueError, match="the labels that the split was made from"):
            split.describe(wrong)
    some = Split([0, 2], [0, 1, 2])  # by hand, leaving samples out
    assert some.label_table([5, 6, 7, 8])[1].sum() == 2


def test_plot_draws_the_table():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    labels = np.repeat([10, 20, 30], 4)
    split = splits.by_label(labels, 3)
    ax = split.plot(labels)
    np.testing.assert_array_equal(ax.images[0].get_array(), np.diag([4, 4, 4]))
    assert [text.get_text() for text in ax.get_xticklabels()] == ["10", "20", "30"]
    assert "0.667" in ax.get_title()
    _, own = pyplot.subplots()
    assert split.plot(labels, ax=own) is own
    pyplot.close("all")


def test_plot_without_matplotlib_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        splits.iid([0, 1], 1).plot([0, 1])


# --- what is refused ------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(
    ("labels", "error"),
    [
        ([], ValueError),
        (np.zeros((3, 2), int), ValueError),
        ([[0, 1], [2]], ValueError),
        (np.eye(3), ValueError),
        (3, TypeError),
        (None, TypeError),
        ([0.0, 1.0], TypeError),
        ([0.0, math.nan], TypeError),
        ([True, False], TypeError),
        ([None, "a"], TypeError),
        ([b"a", b"b"], TypeError),
        ([1j, 2j], TypeError),
    ],
)
def test_bad_labels(name, labels, error):
    options = {"ids": [0, 1]} if name == "natural" else {}
    with pytest.raises(error, match="`labels`"):
        getattr(splits, name)(labels, 2, **options)


LABELS = [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]


@pytest.mark.parametrize(
    ("name", "options", "error"),
    [
        ("iid", {"num_workers": 0}, ValueError),
        ("iid", {"num_workers": -2}, ValueError),
        ("iid", {"num_workers": 2.0}, TypeError),
        ("iid", {"num_workers": True}, TypeError),
        ("iid", {"num_workers": "2"}, TypeError),
        ("iid", {"num_workers": None}, TypeError),
        ("iid", {"seed": -1}, ValueError),
        ("iid", {"seed": None}, TypeError),
        ("iid", {"seed": 1.5}, TypeError),
        ("iid", {"seed": np.True_}, TypeError),
        ("by_label", {"classes_per_worker": 0}, ValueError),
        ("by_label", {"classes_per_worker": 4}, ValueError),
        ("by_label", {"num_workers": 2, "classes_per_worker": 1}, ValueError),
        ("by_label", {"classes_per_worker": 1.0}, TypeError),
        ("by_label", {"classes_per_worker": True}, TypeError),
        ("shards", {"shards_per_worker": 0}, ValueError),
        ("shards", {"shards_per_worker": 5}, ValueError),
        ("shards", {"num_workers": 13, "shards_per_worker": 1}, ValueError),
        ("shards", {"shards_per_worker": 2.0}, TypeError),
        *(
            (name, {"alpha": alpha}, error)
            for name in ("dirichlet", "quantity")
            for alpha, error in [
                *((bad, ValueError) for bad in (0, 0.0, -1.0, math.nan, math.inf)),
                *((bad, TypeError) for bad in (None, "1", True, [1.0], 1j)),
            ]
        ),
        ("dirichlet", {"min_size": -1}, ValueError),
        ("dirichlet", {"min_size": 1.0}, TypeError),
        ("quantity", {"min_size": -1}, ValueError),
        *(("similarity", {"s": bad}, ValueError) for bad in (-0.1, 1.1, 10, math.nan)),
        *(("similarity", {"s": bad}, TypeError) for bad in (None, "0.1", True)),
        ("natural", {"ids": [0] * 11}, ValueError),
        ("natural", {"ids": np.arange(12) % 4}, ValueError),
        ("natural", {"ids": np.zeros((12, 1), int)}, ValueError),
        ("natural", {"ids": [0.5] * 12}, TypeError),
        ("natural", {"ids": None}, TypeError),
    ],
)
def test_bad_options_name_the_argument(name, options, error):
    arguments = {"num_workers": 3, **options}
    with pytest.raises(error, match=f"`{list(options)[-1]}`"):
        getattr(splits, name)(LABELS, **arguments)


def test_dirichlet_refuses_a_table_it_could_not_draw():
    with pytest.raises(ValueError, match="Bin them first"):
        splits.dirichlet(np.arange(20_000), 10_000)


def test_labels_of_every_accepted_type_agree():
    import jax.numpy as jnp

    words = ["b", "a", "b", "c"]
    expected = splits.by_label(words, 2)
    for labels in (
        np.array(words),
        np.array(words, dtype=object),
        np.array(words, dtype=np.dtypes.StringDType()),
        np.array([1, 0, 1, 2], np.int8),
        np.array([8, -5, 8, 99]),
        np.array([1, 0, 1, 2**63], np.uint64),
        jnp.array([1, 0, 1, 2]),
        (1, 0, 1, 2),
    ):
        assert splits.by_label(labels, 2) == expected


@pytest.mark.parametrize("module", ["holdings", "schemes"])
def test_docstring_examples(module):
    results = doctest.testmod(importlib.import_module(f"jaxmedian.splits.{module}"))
    assert results.attempted > 0
    assert results.failed == 0


@pytest.mark.parametrize(
    ("labels", "remedy", "follow"),
    [
        (
            np.array([0, 1, np.nan] * 4),
            r"np.isnan.*\[keep\].astype\(np.int64\)",
            lambda x: x[~np.isnan(x)].astype(int),
        ),
        (np.array([b"cat", b"dog"] * 4), "np.char.decode", np.char.decode),
        (np.array([0.0, 1.0] * 4), r"astype\(int\)", lambda x: x.astype(int)),
        (np.array([0.5, 1.2] * 4), "digitize", lambda x: np.digitize(x, [1.0])),
        (np.array([True, False] * 4), r"astype\(int\)", lambda x: x.astype(int)),
        (
            np.array(["2020-01-01", "2020-01-02"] * 4, "datetime64[D]"),
            r"astype\(str\)",
            lambda x: x.astype(str),
        ),
        (
            np.array(["a", None, "b"] * 4, object),
            r"of NoneType, str.*str\(label\) for label",
            lambda x: np.array([str(label) for label in x if label is not None]),
        ),
    ],
)
def test_labels_that_are_refused_come_with_advice_that_works(labels, remedy, follow):
    with pytest.raises(TypeError, match=remedy):
        splits.iid(labels, 2)
    split = splits.iid(cleaned := follow(labels), 2)
    assert len(np.unique(cleaned)) == 2
    assert sum(split.sizes) == len(cleaned)


def test_the_last_samples_may_be_left_out_by_hand():
    """Trained on the first four of six; the labels may be those of all."""
    labels = ["a", "b", "a", "b", "c", "c"]
    values, counts = Split([3, 0, 1, 2], [0, 2, 4]).label_table(labels)
    assert values.tolist() == ["a", "b", "c"]
    assert counts.tolist() == [[1, 1, 0], [1, 1, 0]]
    twice = Split([0, 0, 1, 1, 1], [0, 2, 5])
    assert twice.label_table(labels)[1].tolist() == [[2, 0, 0], [0, 3, 0]]
    with pytest.raises(ValueError, match="`labels` has 3 entries, but the split has 4"):
        Split([3, 0], [0, 1, 2]).label_table(labels[:3])


def test_sample_numbers_beyond_int32_are_refused_and_not_wrapped():
    split = Split([3_000_000_000, 5], [0, 1, 2])
    with pytest.raises(ValueError, match="sample 3,000,000,000 is above"):
        _ = split.indices
    assert Split([2**31 - 1, 5], [0, 1, 2]).indices.tolist() == [[2**31 - 1], [5]]

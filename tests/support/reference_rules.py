"""Rules that withstand hostile workers as slow loops in float64, from their papers.

Whoever holds a number that is not finite is infinitely far from everybody.
"""

import itertools
import math

import numpy as np


def trimmed_mean(x, f):
    return _by_coordinate(x, lambda column: sorted(column)[f : len(column) - f])


def mean_around_median(x, f):
    def nearest(column):
        middle = float(np.median(column))
        by_distance = sorted(column, key=lambda value: (abs(value - middle), value))
        return by_distance[: len(column) - f]

    return _by_coordinate(x, nearest)


def _by_coordinate(x, keep):
    x = np.asarray(x, np.float64)
    result = np.zeros(x.shape[1])
    for j in range(x.shape[1]):
        column = [math.inf if math.isnan(v) else v for v in x[:, j].tolist()]
        kept = keep(column)
        result[j] = math.fsum(kept) / len(kept)
    return result


def distance(a, b):
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return math.inf
    return math.sqrt(math.fsum((a - b) ** 2))


def krum_scores(x, f, neighbors=None):
    x = np.asarray(x, np.float64)
    count = len(x) - f - 2 if neighbors is None else neighbors
    scores = []
    for i in range(len(x)):
        others = sorted(distance(x[i], x[j]) ** 2 for j in range(len(x)) if j != i)
        scores.append(math.fsum(others[:count]))
    return scores


def krum(x, f, neighbors=None):
    return np.asarray(x, np.float64)[np.argmin(krum_scores(x, f, neighbors))]


def multi_krum(x, f, neighbors=None):
    best = np.argsort(krum_scores(x, f, neighbors), kind="stable")[: len(x) - f]
    return np.asarray(x, np.float64)[best].mean(axis=0)


def bulyan(x, f):
    x = np.asarray(x, np.float64)
    left, chosen = list(range(len(x))), []
    while len(chosen) < len(x) - 2 * f:
        neighbors = max(len(left) - f - 2, 1)
        scores = krum_scores(x[left], f, neighbors) if len(left) > 1 else [0.0]
        chosen.append(left.pop(int(np.argmin(scores))))
    sound = [i for i in chosen if np.isfinite(x[i]).all()]
    return mean_around_median(x[sound], len(sound) - (len(x) - 4 * f))


def minimum_diameter_mean(x, f):
    x = np.asarray(x, np.float64)
    apart = [[distance(a, b) for b in x] for a in x]
    subsets = itertools.combinations(range(len(x)), len(x) - f)

    def diameter(subset):
        return max(apart[i][j] for i, j in itertools.product(subset, subset) if i != j)

    return x[list(min(subsets, key=diameter))].mean(axis=0)  # of equals the first


def geometric_median(x, smoothing, steps, start):
    x = np.asarray(x, np.float64)
    x = x[np.isfinite(x).all(axis=1)]
    z = x.mean(axis=0) if start == "mean" else np.zeros(x.shape[1])

    def step(z, least):
        weights = [1 / max(distance(row, z), least) for row in x]
        return sum(w * row for w, row in zip(weights, x, strict=True)) / sum(weights)

    if start == "majority":  # more than half lie within that distance, the row included
        reach = [sorted(distance(row, other) for other in x)[len(x) // 2] for row in x]
        nearest = min(range(len(x)), key=reach.__getitem__)
        z = step(x[nearest], max(reach[nearest], smoothing))
    for _ in range(steps):
        z = step(z, smoothing)
    return z


def centered_clipping(x, radius, center, steps=1):
    x = np.asarray(x, np.float64)
    for _ in range(steps):
        moves = np.zeros_like(center)
        for row in x:
            norm = distance(row, center)
            if math.isfinite(norm):
                moves += (row - center) * min(1, radius / norm if norm else 1)
        center = center + moves / len(x)
    return center


def nearest_neighbor_mixing(x, f):
    x = np.asarray(x, np.float64)
    sound = np.isfinite(x).all(axis=1)
    middle = np.array(
        [
            sorted(math.inf if math.isnan(v) else v for v in c)[(len(x) - 1) // 2]
            for c in x.T.tolist()
        ]
    )
    mixed = np.zeros_like(x)
    for i in range(len(x)):
        origin = x[i] if sound[i] else middle
        distances = [distance(origin, row) for row in x]
        nearest = np.argsort(distances, kind="stable")[: len(x) - f]
        mixed[i] = x[[j for j in nearest if sound[j]]].mean(axis=0)
    return mixed


def clip_workers(x, radius):
    x = np.asarray(x, np.float64)
    clipped = np.zeros_like(x)
    for i, row in enumerate(x):
        norm = distance(row, np.zeros_like(row))
        if math.isfinite(norm):
            clipped[i] = row * min(1, radius / norm if norm else 1)
    return clipped


def adaptive_clip_workers(x, f):
    norms = [distance(row, np.zeros(len(row))) for row in np.asarray(x, np.float64)]
    num_clipped = 2 * f * (len(x) - f) // len(x)
    return clip_workers(x, sorted(norms)[len(x) - num_clipped - 1])

"""The rules as slow loops: what the fast kernels are compared with.

Written from the pseudo-code and the documented key tree, not from the library, whose
code is not imported here. One coordinate at a time, in Python integers and float64.
"""

import math

import jax
import numpy as np
import scipy.stats

SHARED_UNIFORM = 2**31
TALLY_TIES = 2**31 + 1
ZERO_BITS = 2**31 + 2
PERMUTATION = 3 * 2**30
HOSTILE_CHOICE = 3 * 2**30 + 1
BUCKET_ORDER = 3 * 2**30 + 2
PARTICIPANTS = 3 * 2**30 + 5
HOSTILE_NOISE = 3 * 2**30 + 6
RUN = 3 * 2**30 + 9

UNIT_LAWS = {
    "gaussian": scipy.stats.norm(),
    "laplace": scipy.stats.laplace(scale=1 / math.sqrt(2)),
    "logistic": scipy.stats.logistic(scale=math.sqrt(3) / math.pi),
    "uniform": scipy.stats.uniform(-math.sqrt(3), 2 * math.sqrt(3)),
}


# --- the two rules --------------------------------------------------------------------


def vote(values, *, ties="zero", mask=None, zero_bits=None, tie_bits=None):
    """Algorithm 1 and the table of votes; bits are +1 or -1, `[M, ...]`, `[...]`."""
    values = np.asarray(values, np.float64)
    present = _present(values, mask)
    result = np.zeros(values.shape[1:])
    for place in np.ndindex(*result.shape):
        tally = 0
        for worker in present:
            value = values[(worker, *place)]
            if value > 0:
                tally += 1
            elif value < 0:
                tally -= 1
            elif ties == "positive":
                tally += 1
            elif ties == "random":
                tally += zero_bits[(worker, *place)]
        if tally != 0:
            result[place] = 1 if tally > 0 else -1
        elif present and ties == "positive":
            result[place] = 1
        elif present and ties == "random":
            result[place] = tie_bits[place]
    return result


def median(values, *, even="midpoint", mask=None):
    """Algorithm 2: the middle of those present, NaN counted as +inf, 0 of nobody."""
    values = np.asarray(values, np.float64)
    present = _present(values, mask)
    result = np.zeros(values.shape[1:])
    for place in np.ndindex(*result.shape):
        column = [float(values[(worker, *place)]) for worker in present]
        ascending = sorted(math.inf if math.isnan(value) else value for value in column)
        if not ascending:
            continue
        low = ascending[(len(ascending) - 1) // 2]
        high = ascending[len(ascending) // 2]
        if even == "midpoint":
            result[place] = low / 2 + high / 2
        else:
            result[place] = low if even == "lower" else high
    return result


def _present(values, mask):
    return [i for i in range(values.shape[0]) if mask is None or bool(mask[i])]


# --- the key tree ---------------------------------------------------------------------


def words(key, *, step, leaf, number, shape):
    """The words of one worker (or shared number), by `jax.random` alone."""
    leaf_key = jax.random.fold_in(jax.random.fold_in(key, step), leaf)
    own_key = jax.random.fold_in(leaf_key, np.uint32(number))
    return np.asarray(jax.random.bits(own_key, shape, "uint32"))


def fair_bits(key, *, step, leaf, number, shape):
    """Fair votes: +1 where the top bit of the word is set, else -1."""
    drawn = words(key, step=step, leaf=leaf, number=number, shape=shape)
    return np.where(drawn >= 2**31, 1, -1)


def vote_bits(key, *, shape, step=0, leaf=0):
    """The bits `vote` needs for stacked values of ``shape [M, ...]``."""
    at = {"step": step, "leaf": leaf, "shape": shape[1:]}
    return {
        "zero_bits": np.stack(
            [fair_bits(key, number=ZERO_BITS + i, **at) for i in range(shape[0])]
        ),
        "tie_bits": fair_bits(key, number=TALLY_TIES, **at),
    }


def permutation(key, *, step, leaf, num_workers):
    """The order in which systematic noise deals its slots to one leaf in one step."""
    leaf_key = jax.random.fold_in(jax.random.fold_in(key, step), leaf)
    own_key = jax.random.fold_in(leaf_key, np.uint32(PERMUTATION))
    return np.asarray(jax.random.permutation(own_key, num_workers))


def worker_words(key, coupling, *, shape, step=0, leaf=0, mask=None):
    """The words `[M, ...]` behind every worker's noise; 0 for absent workers."""
    at = {"step": step, "leaf": leaf, "shape": shape[1:]}
    if coupling == "independent":
        return np.stack([words(key, number=i, **at) for i in range(shape[0])])
    shared = words(key, number=SHARED_UNIFORM, **at).astype(object)
    order = permutation(key, step=step, leaf=leaf, num_workers=shape[0])
    present = [i for i in range(shape[0]) if mask is None or mask[i]]
    result = np.zeros(shape, np.uint32)
    for worker in present:
        rank = sum(int(order[other]) < int(order[worker]) for other in present)
        slot = rank * 2**32 // len(present)
        result[worker] = (shared + slot) % 2**32
    return result


def centred_uniform(drawn):
    """t in (-1, 1), exact in float64."""
    return ((drawn >> 9) + 0.5) * 2.0**-22 - 1


def unit_noise(law, drawn):
    """xi = H^{-1}((1 + t) / 2) in float64, from the nearer tail."""
    t = centred_uniform(drawn)
    magnitude = UNIT_LAWS[law].isf((1 - np.abs(t)) / 2)
    return np.copysign(magnitude, t)


def relative_scale(grads, factor, statistic, mask=None):
    """factor * max or median over present workers of max|g|, finite entries only."""
    peaks = []
    for worker in _present(grads, mask):
        finite = [abs(float(g)) for g in np.ravel(grads[worker]) if math.isfinite(g)]
        if finite:
            peaks.append(max(finite))
    if not peaks:
        return 0.0
    return factor * (max(peaks) if statistic == "max" else float(np.median(peaks)))

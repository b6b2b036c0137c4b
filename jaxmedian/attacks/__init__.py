"""Byzantine attacks: worker transforms that replace the rows of hostile workers.

Each stands in a chain before the aggregator, runs inside jit, and takes ``workers``:
the numbers of the hostile, or how many to draw anew each step with a ``key``.

    jm.attacks.sign_flip([0, 1])        workers 0 and 1, all along
    jm.attacks.sign_flip(2, key)        two others each step

    jm.attacks.strongest(jm.attacks.a_little_is_enough, jm.krum(2), [0, 1])

The honest rows pass as they are. `label_flip` alone attacks batches, not gradients.
"""

from jaxmedian.attacks.on_distances import min_max, min_sum
from jaxmedian.attacks.on_gradients import (
    a_little_is_enough,
    gaussian,
    inf,
    inner_product_manipulation,
    mimic,
    nan,
    sign_flip,
)
from jaxmedian.attacks.on_labels import label_flip
from jaxmedian.attacks.on_votes import near_tie_collusion, pivotal_votes
from jaxmedian.attacks.search import strongest

__all__ = [
    # On gradients
    "sign_flip",
    "inner_product_manipulation",
    "a_little_is_enough",
    "mimic",
    "gaussian",
    "inf",
    "nan",
    # On distances
    "min_max",
    "min_sum",
    # With the scale that does the aggregator most harm
    "strongest",
    # On votes
    "near_tie_collusion",
    "pivotal_votes",
    # On batches
    "label_flip",
]

"""Workers' values whose median is not their mean."""

from collections.abc import Sequence

import numpy as np


def check_skewed(name: str, values: Sequence[float], number: int) -> None:
    """Checks the values of an experiment about the bias of the median.

    Raises:
      ValueError: if they are not so many, or symmetric about their mean.

    >>> check_skewed("values", (1.0, 2.0, 10.0), 3)
    """
    deviations = np.asarray(values) - np.mean(values)
    if len(values) != number or np.mean(deviations**3) == 0:
        raise ValueError(
            f"`{name}` must hold {number} values that are not symmetric about their "
            f"mean, where noise has nothing to cure; got {tuple(values)}."
        )

"""What to measure about heterogeneous gradients and what a rule makes of them.

    of_step, mean_median_gap, gradient_norm   one step, measured at each chunk edge
    suspicion                                 which workers are outvoted
    sample_coordinates                        coordinates to choose the noise from
    gradient_dissimilarity, squared_norms     how heterogeneous a split is to a model
    wire_bytes                                what a compiled program sends

The first three lines are plain functions of stacked gradients ``[M, ...]``, for the
``metrics`` of `jaxmedian.run` and for loops of your own.
"""

from jaxmedian.diagnostics.dissimilarity import (
    Dissimilarity,
    fit_dissimilarity,
    gradient_dissimilarity,
    squared_norms,
)
from jaxmedian.diagnostics.measures import (
    gradient_norm,
    mean_median_gap,
    of_step,
    suspicion,
)
from jaxmedian.diagnostics.sample import sample_coordinates
from jaxmedian.diagnostics.wire import WireBytes, wire_bytes

__all__ = [
    # One step
    "of_step",
    "gradient_norm",
    "mean_median_gap",
    "suspicion",
    # The noise to choose
    "sample_coordinates",
    # The split
    "Dissimilarity",
    "gradient_dissimilarity",
    "squared_norms",
    "fit_dissimilarity",
    # The wire
    "WireBytes",
    "wire_bytes",
]

"""Constants of large noise: bias ~ -kappa_M mu3 / b^2 and variance ~ sigma_M^2 b^2.

They depend on the law and the number of workers only. The expansion holds for b well
above the spread of the values; `median_bias` and `median_moments` are exact everywhere.
"""

import numpy as np

from jaxmedian.noise import COUPLINGS, Noise
from jaxmedian.noise.laws import LAWS
from jaxmedian.theory import median_law
from jaxmedian.theory.arguments import choice, middle_ranks, positive_integer
from jaxmedian.theory.numerics import large_noise, systematic_median


def bias_coefficient(law_name: str, num_workers: int) -> float:
    """Computes kappa_M of E[median] = mean - kappa_M mu3 / b^2 + ...

    mu3 = mean((u_i - mean)^3), kappa_M = M^3 / (6 (M-1) (M-2)) int A'(H) h h' dz, A(p)
    = C(M-1, k-1) p^(k-1) (1-p)^(M-k), k = (M+1)/2, and the average over k = M/2, M/2 +
    1 for the midpoint of an even M. The next order is b^-4 for the smooth laws and b^-3
    for the kinked ones. It is exactly 0 for one or two workers, and for uniform noise
    from M = 5 on, where the bias is O(b^-(floor((M-1)/2) + 1)).

    Args:
      law_name: "gaussian", "laplace", "logistic" or "uniform".
      num_workers: M >= 1.

    Returns:
      kappa_M, without unit.

    Raises:
      ValueError, TypeError: for an unknown law or a number of workers below 1.

    Reference: ours; the paper bounds the bias by O(1/b) (Theorem 4). That the Gaussian
    law's is smaller than the logistic one's agrees with what Jin and Dai ("Noisy
    SIGNSGD is more differentially private than you (might) think", ICML 2025) saw on
    heterogeneous data.

    >>> print(f"{bias_coefficient('gaussian', 3):.12f}")
    0.413496671566
    >>> print(f"{bias_coefficient('logistic', 3):.3f}")
    0.493
    """
    choice("law_name", law_name, tuple(LAWS))
    num_workers = positive_integer("num_workers", num_workers)
    if num_workers <= 2:
        return 0.0
    ranks = middle_ranks(num_workers, "midpoint")
    return large_noise.coefficient(LAWS[law_name], num_workers, ranks)


def limit_variance(
    law_name: str, num_workers: int, coupling: str = "independent"
) -> float:
    """Computes lim Var[median] / b^2 for b -> infinity: equal values, b = 1.

    Independent noise: sigma_M^2, the variance of the median of M draws (that of Theorem
    5); 3 / (M + 2) for uniform noise and odd M. Systematic noise and odd M: the
    variance of xi within its central 1/M of probability, 1 / M^2 for uniform noise.

    Args:
      law_name: "gaussian", "laplace", "logistic" or "uniform".
      num_workers: M >= 1; an even M takes the midpoint, and is at most 200 for
        independent noise.
      coupling: "independent" or "systematic".

    Returns:
      The variance, without unit.

    Raises:
      ValueError, TypeError: for an unknown law or coupling, or unfit workers.

    Reference: sigma^2 of Theorem 5; the systematic limit is ours.

    >>> print(f"{limit_variance('uniform', 11):.12f}")
    0.230769230769
    """
    choice("law_name", law_name, tuple(LAWS))
    choice("coupling", coupling, COUPLINGS)
    num_workers = positive_integer("num_workers", num_workers)
    if coupling == "independent":
        equal = np.zeros(num_workers)
        return float(median_law.median_moments(equal, Noise(law_name, 1.0))[1])
    ranks = middle_ranks(num_workers, "midpoint")
    return systematic_median.equal_variance(LAWS[law_name], num_workers, ranks)

"""The finite scales from which systematic noise is exactly unbiased, with their proofs.

Slots k = 0..M-1 hold the noises b q_k(s), q_k(s) = H^{-1}((k + s) / M), the same for
all permutations; s is uniform, and the workers go round the slots as V grows. R =
max|u_i - u_j|, Q = max|u_i|, n = (M - 1) / 2.

**The law of the median**, b >= M h(0) R. Neighbouring slots differ by at least b / (M
h(0)) >= R, since dp = h dz <= h(0) dz, so the noises alone order the workers: median =
u_J + b zeta, with J uniform over the workers and independent of zeta, which is xi
within its central 1/M of probability. E = mean(u), Var = var(u) + b^2 v_M, v_M =
Var(zeta). For even M the midpoint averages two workers drawn without replacement and
two neighbouring noises: E = mean(u) again, and var(u) becomes var(u) (M - 2) / (2 M -
2).

**The mean of the median**, b >= R / (2 H^{-1}(1/2 + 1/M)), at most half of that. Slots
two apart near the middle then differ by at least R, so only neighbours can change
places, and not three in a row. With L, C, U the values in slots n-1, n, n+1: median = C
+ (L - C)^+ - (C - U)^+. Let i and j be neighbours in the permutation. When they hold
slots n-1 and n, the middle one gains (u_i - u_j - b (q_n - q_{n-1}))^+; when they hold
n and n+1 it loses (u_i - u_j - b (q_{n+1} - q_n))^+. By symmetry the gaps at s and at 1
- s are equal, the two terms cancel, and E[median] = mean(u).

**The same, uniform law**, b >= M R / (sqrt(3) (M + 1)) for odd M: no growth with M. On
a circle of circumference c = 2 sqrt(3) b the values u_i + c pi_i / M stand still while
V turns the cut. Every value stays within R + c n / M of the median, below c if R < c (n
+ 1) / M, so the median is always one of the M points in the order of the circle, and
steps back by one whenever a worker crosses the cut, which happens every c / M: each
point has the same share. (Midpoint of an even M: R <= c / 2.)

**The vote**, uniform law, odd M, b >= M Q / sqrt(3). Neighbouring noises are 2 sqrt(3)
b / M >= 2 Q apart, so n workers vote + and n vote - by their noise alone; the middle
one is a uniformly random worker with noise uniform on +-sqrt(3) b / M, and votes + with
probability 1/2 + M u_J / (2 sqrt(3) b). Hence E[vote] = M mean(u) / (sqrt(3) b).

All of this is ours and holds for every permutation, also a fixed one.
"""

import numpy as np

from jaxmedian.noise.laws import Law


def law_known_from(law: Law, num_workers: int, width: float) -> float:
    """Returns M h(0) R, from which the whole law of the median is known."""
    return num_workers * float(law.pdf(0.0)) * width


def mean_exact_from(law: Law, num_workers: int, width: float) -> float:
    """Returns the scale from which E[median] (or midpoint) is exactly the mean."""
    if num_workers <= 2 or width == 0:
        return 0.0
    pairs = 0.5 * width / float(law.quantile(0.5 + 1.0 / num_workers))
    if not law.is_flat:
        return pairs
    turning = width / (2 * np.sqrt(3.0)) * num_workers / ((num_workers + 1) // 2)
    return min(pairs, float(turning))


def vote_exact_from(num_workers: int, largest: float) -> float:
    """Returns M Q / sqrt(3), from which the uniform vote is unbiased, for odd M."""
    return num_workers * largest / float(np.sqrt(3.0))

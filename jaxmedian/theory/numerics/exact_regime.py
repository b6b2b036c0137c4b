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

**The vote**, uniform law, b >= M Q / (sqrt(3) c) with c = 1 for odd and 2 for even M.
Let the tally be the number of + votes minus that of - votes. Each worker votes + with
probability 1/2 + u_i / (2 sqrt(3) b), so E[tally] = M mean(u) / (sqrt(3) b). Slot k
holds a noise of 2 sqrt(3) b / M times k + s - M / 2, and the slots are this far apart:
c Q or more. All but c slots in the middle have a noise of at least Q in size, as many +
as -, whatever their workers' values; so the tally is -1 or 1 (odd), -2, 0 or 2 (even).
With ties to 0, or to a fair bit, E[vote] = E[tally] / c = M mean(u) / (sqrt(3) b c),
and mean(u) / Q at the threshold. For even M the vote is then a ternary step with
E[vote^2] <= mean|u| / Q: it is not 0 only if a worker in one of the middle slots votes
against its noise, which worker i does with probability |u_i| / (2 sqrt(3) b).

**Tightness.** From the scales of a mean and of a vote on the bias is 0; a little below
them it is not, for permutations in which the extreme workers are neighbours. The vote
needs the uniform law: with another one E[tally] is a sum of 2 H(u_i / b) - 1, which is
not linear in the u_i.

All of this is ours and holds for every permutation, also a fixed one. The coupling is
not: it is correlated quantization (Suresh, Sun, Ro and Yu, ICML 2022), there for the
estimation of a mean, with a tally that is averaged and never asked for its sign. The
uniform sign of one worker is "stochastic sign" (Jin et al., 2020) and, with ties to 0,
the ternary step of TernGrad (Wen et al., 2017).
"""

import numpy as np

from jaxmedian.noise.laws import Law


def law_known_from(law: Law, num_workers: int, width: float) -> float:
    """Returns M h(0) R, from which the whole law of the median (midpoint) is known.

    0 for one worker, and for two, whose midpoint averages both whatever their order.
    """
    if num_workers <= 2:
        return 0.0
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
    """Returns the scale from which the systematic uniform vote is unbiased."""
    return num_workers * largest / (float(np.sqrt(3.0)) * tally_step(num_workers))


def tally_step(num_workers: int) -> int:
    """Returns c, the size of the tally of an unbiased vote that is not tied."""
    return 1 if num_workers % 2 else 2

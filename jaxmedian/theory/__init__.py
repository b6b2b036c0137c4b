"""What noise buys, exactly: the law of the noisy median and of the noisy vote.

Every function takes the workers' values ``[M]`` or ``[M, ...]``, worker axis first, and
a `jaxmedian.noise.Noise` whose scale is a number; computes in NumPy float64, with no
jit; and obeys the coupling of the noise.

**Why the bias is O(1/b^2).** Let X_i = u_i + b xi_i, d_i = u_i - mean(u), e_i = d_i /
b, and let xi have the CDF H and the density h.

1. With z = (x - mean) / b and p_i = H(z - e_i), F(z) = P(median <= x) = P(at least n +
   1 of M independent events of probabilities p_i): symmetric, and affine in each p_i.
2. Around p = H(z), with delta_i = p_i - p, T(p) = P(Binomial(M, p) >= n + 1), c_k =
   T^(k)(p) (M - k)! / M! and E_k the elementary symmetric polynomials, therefore
   exactly F = sum_k c_k E_k(delta).
3. delta_i = -e_i h + e_i^2 h' / 2 - e_i^3 h'' / 6 + ..., and the e_i sum to zero.
4. With m_k = sum_i e_i^k: E_1 = m_2 h' / 2 - m_3 h'' / 6 + ..., E_2 = -m_2 h^2 / 2 +
   m_3 h h' / 2 + ..., E_3 = -m_3 h^3 / 3 + ...: nothing of first order is left.
5. Reflecting all signs turns the median around: E[median] - mean is odd in e, so the
   second order goes too, and bias = -b int (third order of F) dz + O(b e^5).
6. bias / b = m_3 int (c_1 h'' / 6 - c_2 h h' / 2 + c_3 h^3 / 3) dz.
7. As c_1' = (M - 1) c_2 and c_2' = (M - 2) c_3, by parts int c_1 h'' = -(M - 1) int c_2
   h h' and int c_3 h^3 = -2 / (M - 2) int c_2 h h'.
8. The sum is -M^2 / (6 (M - 2)) int c_2 h h', since (M-1)(M-2) + 3 (M-2) + 4 = M^2.
9. With A = T' / M, the chance that the other workers leave the decision to one, c_2 =
   A' / (M - 1), and m_3 = M mu3 / b^3, mu3 = mean(d_i^3).
10. E[median] = mean - kappa_M mu3 / b^2 + O(1/b^4), kappa_M = M^3 / (6 (M-1) (M-2)) int
    A'(H) h h' dz: `bias_coefficient`. (Kinked laws: O(1/b^3). Uniform, M >= 5: kappa =
    0.)

**The paper's** (Chen et al., NeurIPS 2020): the algorithms, Proposition 1, Theorems 1
to 6: bias O(1/b), antisymmetric part of the median's density O(1/b^2), rates T^(-1/4)
and T^(-1/3). **Ours**: the exact law as an O(M^2) recursion, everything above, explicit
constants in Theorems 5 and 6, the sharper schedules, the AR(1) form and the rest points
on quadratics, and systematic noise with its exact laws and its finite b of exact
unbiasedness.
"""

from jaxmedian.theory.asymptotics import bias_coefficient, limit_variance
from jaxmedian.theory.bounds import (
    theorem1_bound,
    theorem2_bound,
    theorem5_bound,
    theorem6_bound,
)
from jaxmedian.theory.gradient import median_moments_gradient
from jaxmedian.theory.median_distribution import median_cdf, median_density
from jaxmedian.theory.median_law import median_bias, median_moments
from jaxmedian.theory.quadratics import median_sgd_path, rest_point
from jaxmedian.theory.scales import best_scale
from jaxmedian.theory.schedules import (
    schedule_sharper,
    schedule_theorem5,
    schedule_theorem6,
)
from jaxmedian.theory.simulation import simulate_median, simulate_vote
from jaxmedian.theory.unbiased import unbiased_median, unbiased_scale, unbiased_vote
from jaxmedian.theory.votes import vote_probability

__all__ = [
    # the exact laws
    "median_moments",
    "median_bias",
    "median_cdf",
    "median_density",
    "median_moments_gradient",
    "vote_probability",
    # large noise
    "bias_coefficient",
    "limit_variance",
    # systematic noise beyond a finite b
    "unbiased_scale",
    "unbiased_median",
    "unbiased_vote",
    # choosing noise and step size
    "best_scale",
    "schedule_theorem5",
    "schedule_theorem6",
    "schedule_sharper",
    # convergence
    "theorem1_bound",
    "theorem2_bound",
    "theorem5_bound",
    "theorem6_bound",
    "rest_point",
    "median_sgd_path",
    # Monte Carlo
    "simulate_median",
    "simulate_vote",
]

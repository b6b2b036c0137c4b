"""What noise buys, exactly: the law of the noisy median and of the noisy vote.

Every function takes the workers' values ``[M]`` or ``[M, ...]``, worker axis first, and
a `jaxmedian.noise.Noise` whose scale is a number; computes in NumPy float64, with no
jit; and obeys the coupling of the noise. The text below is Markdown: in a notebook,
``IPython.display.Markdown(jaxmedian.theory.__doc__)`` shows it.

**Why the bias is O(1/b^2).** Let `X_i = u_i + b xi_i` with independent xi_i, M = 2n + 1
workers, `d_i = u_i - mean(u)` and `e_i = d_i / b`. Let xi have the CDF H and a
symmetric, smooth density h. Integrals go over all z; H and h stand for H(z) and h(z).

1. With `z = (x - mean) / b` and `p_i = H(z - e_i)`, `F(z) = P(median <= x)` is the
   chance that at least n + 1 of M independent events of probabilities p_i happen. It is
   symmetric in the p_i, and affine in each of them.
2. Hence its expansion around p = H(z) ends, and is exact: with `delta_i = p_i - p` and
   `T(p) = P(Binomial(M, p) >= n + 1)`, `F = sum_k c_k E_k(delta)`, where E_k are the
   elementary symmetric polynomials and `c_k = T^(k)(p) (M - k)! / M!`.
3. `delta_i = -e_i h + e_i^2 h' / 2 - e_i^3 h'' / 6 + ...`, and the e_i sum to zero.
4. With `m_k = sum_i e_i^k`: `E_1 = m_2 h' / 2 - m_3 h'' / 6 + ...`,
   `E_2 = -m_2 h^2 / 2 + m_3 h h' / 2 + ...` and `E_3 = -m_3 h^3 / 3 + ...`: nothing of
   first order is left.
5. Changing all signs turns the median around: even orders of F are odd in z and
   integrate to zero, `bias = -b int (third order of F) dz + O(b e^5)`.
6. So `bias / b = m_3 int (c_1 h'' / 6 - c_2 h h' / 2 + c_3 h^3 / 3) dz`.
7. By parts, with `dc_1/dp = (M - 1) c_2` and `dc_2/dp = (M - 2) c_3`:
   `int c_1 h'' = -(M - 1) int c_2 h h'`, `int c_3 h^3 = -2 / (M - 2) int c_2 h h'`.
8. The sum is `-M^2 / (6 (M - 2)) int c_2 h h' dz`, as (M-1)(M-2) + 3 (M-2) + 4 = M^2.
9. `A = T' / M` is the chance that the others leave the decision to one worker: `c_2 =
   A'(H) / (M - 1)`. And `m_3 = M mu3 / b^3` with `mu3 = mean(d_i^3)`.
10. `E[median] = mean - kappa_M mu3 / b^2 + O(1/b^4)`, with `kappa_M = M^3 / (6 (M - 1)
    (M - 2)) int A'(H) h h' dz`: the function `bias_coefficient`.

For the midpoint of an even M, T is the average over both middle ranks, and all else
stays; for M <= 2 the bias is exactly 0. The next order is 1/b^3 for laws with a kink or
an edge. With uniform noise and M >= 5 kappa_M is 0, and the bias even smaller.

**What else it shows.** The odd orders of F are the part of the density that is
antisymmetric about the mean. They begin with the third: its mass is O(1/b^3) if h is
smooth. The kink of the Laplace law costs an order, as do the edges of the uniform law
for M = 3: O(1/b^2). A bias of 1/b^2 in place of 1/b needs less noise, hence the sharper
schedules; they are asymptotic, for b well above the spread of the values.

| | the paper: Chen et al., NeurIPS 2020 | ours |
|---|---|---|
| vote, median | Proposition 1: vote = sign(median) | exact laws, O(M^2) recursions |
| bias | O(1/b) (Theorem 4) | -kappa_M mu3 / b^2, this derivation |
| antisymmetric mass | O(1/b^2) (Theorem 4) | O(1/b^3), if h is smooth |
| noisy signSGD | b ~ T^(1/4), rate T^(-1/4) (Theorem 5) | T^(1/6), rate T^(-1/3) |
| noisy medianSGD | b ~ T^(1/6), rate T^(-1/3) (Theorem 6) | T^(1/10), rate T^(-2/5) |
| bounds | Theorems 1 and 2 | the constants of Theorems 5 and 6 |
| quadratics | the counterexample (Fig. 1) | rest points, and an AR(1) process |
| weighted workers | - | power indices, not the weighted mean |
| hostile workers | named (Remarks) | exact shifts and votes, the best b against f |
| systematic noise | - | exact laws; no bias beyond a finite b (vote: uniform law) |

Systematic noise is correlated quantization (Suresh, Sun, Ro and Yu, ICML 2022), there
for the estimation of a mean; what it does to medians and votes is ours.

```pycon
>>> from jaxmedian import noise
>>> exact = median_bias([1, 2, 10], noise.gaussian(100.0))
>>> predicted = -bias_coefficient("gaussian", 3) * (1190 / 27) / 100.0**2  # mu3 / b^2
>>> print(f"{exact:.7f} {predicted:.7f}")
-0.0018213 -0.0018224

```
"""

from jaxmedian.theory.asymptotics import bias_coefficient, limit_variance
from jaxmedian.theory.bounds import (
    theorem1_bound,
    theorem2_bound,
    theorem5_bound,
    theorem6_bound,
)
from jaxmedian.theory.crossover import hostile_crossover
from jaxmedian.theory.hostile import (
    hostile_median_error,
    hostile_median_shift,
    hostile_vote,
)
from jaxmedian.theory.median_distribution import median_cdf, median_density
from jaxmedian.theory.median_law import median_bias, median_moments
from jaxmedian.theory.moments_gradient import median_moments_gradient
from jaxmedian.theory.power_indices import (
    balanced_split_index,
    banzhaf_index,
    shapley_shubik_index,
)
from jaxmedian.theory.quadratics import median_sgd_path, rest_point
from jaxmedian.theory.scales import best_scale
from jaxmedian.theory.schedules import (
    schedule_sharper,
    schedule_theorem5,
    schedule_theorem6,
)
from jaxmedian.theory.simulation import simulate_median, simulate_vote
from jaxmedian.theory.unbiased import unbiased_median, unbiased_scale, unbiased_vote
from jaxmedian.theory.vote_law import vote_probability

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
    # weighted workers under large noise
    "shapley_shubik_index",
    "banzhaf_index",
    "balanced_split_index",
    # hostile workers
    "hostile_median_shift",
    "hostile_median_error",
    "hostile_vote",
    "hostile_crossover",
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

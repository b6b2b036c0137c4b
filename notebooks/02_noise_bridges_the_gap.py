# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Noise bridges the gap
#
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/jaxmedian/jaxmedian/blob/main/notebooks/02_noise_bridges_the_gap.ipynb)
#
# Workers who add noise before the vote or the median make it follow the mean. How well,
# `jm.theory` knows exactly: the curves below are formulas, the dots are simulated. Then
# the question that matters in practice: how much noise is right, and of which coupling?

# %%
# Setup. Nothing is installed where jaxmedian is already; on Colab a clone is put on the
# path and missing packages come without their dependencies: Colab's own JAX stays.
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

if not all(map(importlib.util.find_spec, ("jaxmedian", "experiments"))):
    clone = Path("..") if Path("../experiments").exists() else Path("jaxmedian-main")
    if not clone.exists():
        address = "https://github.com/jaxmedian/jaxmedian"
        subprocess.run(["git", "clone", "--depth=1", address, clone], check=True)
    sys.path.insert(0, str(clone.resolve()))
for package in ("optax", "flax", "mlxtend"):
    if importlib.util.find_spec(package) is None:
        install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", package]
        subprocess.run(install, check=True)

SMOKE = os.environ.get("JAXMEDIAN_SMOKE") == "1"  # tiny sizes, to test the notebook

# %%
# Parameters.
VALUES = (1.0, 2.0, 10.0)  # the workers' gradients in one coordinate
SCALES = (1.0, 5.0, 20.0)  # b, the standard deviation of one worker's noise
DRAWS = 2_000 if SMOKE else 200_000  # behind each dot
NUM_COUNTS = 50 if SMOKE else 5_000  # of votes
NUM_POINTS = 8 if SMOKE else 60  # of each curve
NUM_WORKERS = 9
NUM_STEPS = 4 if SMOKE else 300
LEARNING_RATE = 1e-3
BATCH_SIZE = 8 if SMOKE else 64
HIDDEN = 4 if SMOKE else 64
NUM_SAMPLED = 100 if SMOKE else 4000  # coordinates, to choose b
NUM_KEPT = 10 if SMOKE else 400  # of them, those with the largest mean gradients
GUESS = 1e-3  # b of the run in which they are sampled
TRIED = (0.0, 1e-2) if SMOKE else (0.0, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)  # other b

# %%
import functools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jaxmedian as jm
from experiments.common.data.digits import load_mnist5k
from experiments.common.harness.plots import use_look
from experiments.common.training.models import mnist_network

use_look()
values = np.array(VALUES)
mean, median = values.mean(), np.median(values)
rows = jnp.tile(jnp.asarray(values, jnp.float32)[:, None], (1, DRAWS))  # [M, DRAWS]

# %% [markdown]
# ## The noisy median
#
# Three workers hold 1, 2 and 10. Without noise their median is 2, always, and the mean
# is 13/3. What does the median of 1, 2 and 10 plus noise look like? With little noise
# it still sits at 2. With more, its law (curves: `jm.theory.median_density`;
# histograms: `jm.perturbed_median`) becomes wide and symmetric about the mean.

# %%
figure, axes = plt.subplots(1, len(SCALES), figsize=(8.4, 2.8), layout="constrained")
for panel, scale in zip(axes, SCALES, strict=True):
    noise = jm.noise.gaussian(scale)
    t = np.linspace(mean - 2 * scale - 3, mean + 2 * scale + 3, NUM_POINTS)
    drawn = np.asarray(jm.perturbed_median(rows, noise, key=0))
    bins = np.linspace(t[0], t[-1], 40)
    panel.hist(drawn, bins, density=True, color="C0", alpha=0.3)
    panel.plot(t, jm.theory.median_density(values, noise, t), color="C0")
    panel.axvline(median, color="C1", linewidth=0.8)
    panel.axvline(mean, color="black", linestyle="--", linewidth=0.8)
    panel.set(title=f"b = {scale:g}", xlabel="median", yticks=[])
plt.show()

# %% [markdown]
# How close does its expectation come to the mean, and at what price? Left: the bias
# falls as $1/b^2$ (the paper proves $1/b$). Right: the root mean squared error of one
# median, bias and variance together. It has a best b, which `jm.theory.best_scale`
# finds (crosses), and of three workers it is hardly less than without noise. But a run
# takes many steps, over which the variance averages out and the bias does not.
# Systematic noise, of which more below, has less of both from b = 0.5 on.

# %%
grid = np.geomspace(0.3, 100, NUM_POINTS)
dots = np.geomspace(0.5, 50, 6)
figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.2), layout="constrained")
best = jm.theory.best_scale(values, "gaussian", rule="median")
for coupling, color in (("independent", "C0"), ("systematic", "C2")):
    noises = [jm.noise.gaussian(float(scale), coupling) for scale in grid]
    bias = np.array([jm.theory.median_bias(values, noise) for noise in noises])
    variance = [jm.theory.median_moments(values, noise)[1] for noise in noises]
    left.plot(grid, abs(bias), color=color, label=coupling)
    right.plot(grid, np.sqrt(bias**2 + variance), color=color)
    for i, scale in enumerate(dots):
        noise = jm.noise.gaussian(float(scale), coupling)
        found = jm.theory.simulate_median(values, noise, i, DRAWS)
        off, error = found.mean - mean, found.standard_errors.mean
        if abs(off) > 5 * error:  # a smaller bias drowns in the draws
            left.errorbar(scale, abs(off), error, fmt="o", color=color)
        right.plot(scale, np.sqrt(off**2 + found.variance), "o", color=color)
    choice = getattr(best, coupling)
    right.plot(choice.scale, choice.value**0.5, "kx", markersize=9)
    print(f"{coupling}: best b = {choice.scale:.2f}, error {choice.value**0.5:.2f}")
print(f"without noise the error is {abs(mean - median):.2f}")
large = grid[grid > 3]
left.plot(large, 50 / large**2, "--", color="grey", label="1/b^2")
left.set(title="|E[median] - mean|", xlabel="b", xscale="log", yscale="log")
left.set_ylim(1e-4, 5)
right.set(title="root mean squared error", xlabel="b", xscale="log", yscale="log")
left.legend()
plt.show()

# %% [markdown]
# ## The noisy vote
#
# A vote has no size, only a sign: signSGD on $f_i(x) = (x - a_i)^2/2$, whose gradients
# at $x$ are $x - a_i$, rests where + and - are equally likely. Where is that? Curves:
# the expected vote against $x$, exactly; dots: `jm.majority_vote` itself. Without noise
# the vote turns at the median 2; the more noise, the closer to the mean, and the more
# gently.

# %%
points = np.linspace(-4, 14, 10)
x = np.linspace(-4, 14, NUM_POINTS)
figure, panel = plt.subplots(figsize=(6, 3.4), layout="constrained")
for i, scale in enumerate((0.0, *SCALES)):
    noise = jm.noise.gaussian(scale)
    at_x = x - values[:, None]  # [M, points]
    vote = jm.theory.vote_probability(at_x, noise)
    (line,) = panel.plot(x, np.asarray(vote.plus) - vote.minus, label=f"b = {scale:g}")
    rest = jm.theory.rest_point(values, noise, rule="vote")
    panel.plot(rest, 0, "|", markersize=14, color=line.get_color())
    print(f"b = {scale:4g}: the vote rests at {rest:.4f}")
    if scale:
        aggregator = jm.majority_vote(noise, key=i)
        grads = jnp.asarray(points, jnp.float32)[None, :, None] - rows[:, None, :2000]
        votes, _ = aggregator.update(grads, aggregator.init(grads[0]))
        panel.plot(
            points, votes.mean(axis=1), "o", color=line.get_color(), markersize=4
        )
panel.axvline(mean, color="black", linestyle="--", linewidth=0.8)
panel.axhline(0, color="grey", linewidth=0.8)
panel.set(title="expected vote at x; |: rest point, dashed: mean", xlabel="x")
panel.legend()
plt.show()

# %% [markdown]
# ## Choosing b for a network
#
# In a network one b must suit thousands of coordinates. Run a little with little noise,
# sample coordinates of the workers' gradients where the run has got to, and ask
# `best_scale` which b gives the vote the sign of the mean most often. Take the
# gradients of all their data, since the sampling noise of mini-batches would pass for
# differences between the workers; and the tenth of the coordinates with the largest
# means, since most hardly matter and all count alike. (`rule="descent"` weighs them by
# size instead; in this network a few biases with very large gradients would then decide
# alone.)

# %%
digits = load_mnist5k(seed=0)
model = mnist_network(seed=0, hidden=HIDDEN)
split = jm.splits.similarity(digits.train_labels, NUM_WORKERS, s=0.0)
indices = split.indices[:, : split.sizes.min()]
worker_data = {
    "images": digits.train_images[indices],
    "labels": digits.train_labels[indices],
}
test_set = {"images": digits.test_images, "labels": digits.test_labels}


def train(scale, coupling):
    noise = jm.noise.uniform(scale, coupling)
    return jm.run_pure(
        model.loss,
        jm.noisy_sign_sgd(LEARNING_RATE, noise, key=0),
        model.params,
        jm.mini_batches(worker_data, BATCH_SIZE),
        NUM_STEPS,
        key=0,
        chunk=NUM_STEPS,
    ).params


params = jax.jit(functools.partial(train, coupling="independent"))(GUESS)
grads = jax.jit(jm.worker_grads(model.loss))(params, worker_data)
sample = np.asarray(jm.diagnostics.sample_coordinates(grads, NUM_SAMPLED, key=0))
weight = np.abs(sample.mean(axis=0))
largest = np.argsort(-weight)[:NUM_KEPT]
share = weight[largest].sum() / weight.sum()
print(f"{NUM_KEPT} coordinates of {NUM_SAMPLED} hold {share:.2f} of the mean gradient")

kept = sample[:, largest]
best = jm.theory.best_scale(kept, "uniform", rule="vote")
print(f"independent: b = {best.independent.scale:.4f}")
print(f"systematic:  b = {best.systematic.scale:.4f}")
print(f"the better is {best.coupling}")

# %% [markdown]
# Was it a good choice? Left: the chance of the right sign against b, over these
# coordinates: exact curves, simulated dots, crosses at the chosen b. Right: the test
# accuracy of whole runs with that b (crosses) and with others, vmapped in one program;
# dashed, without noise. What was sampled in one poor run tells where the good ones are.
# Far too little noise is as bad as none, far too much drowns the gradient.

# %%
grid = np.geomspace(1e-4, 1.0, 12 if SMOKE else 41)
figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.2), layout="constrained")


def right_signs(vote):
    return np.mean(np.where(kept.mean(axis=0) > 0, vote.plus, vote.minus))


for coupling, color in (("independent", "C0"), ("systematic", "C2")):
    noises = [jm.noise.uniform(b, coupling) for b in grid]
    exact = [jm.theory.vote_probability(kept, noise) for noise in noises]
    dots = [jm.theory.simulate_vote(kept, noise, 0, draws=400) for noise in noises[::8]]
    left.plot(grid, [*map(right_signs, exact)], color=color, label=coupling)
    left.plot(grid[::8], [*map(right_signs, dots)], "o", color=color, markersize=4)
    choice = getattr(best, coupling)
    left.plot(choice.scale, choice.value, "kx", markersize=9)

    scales = np.array([*TRIED, choice.scale])
    runs = jax.jit(jax.vmap(functools.partial(train, coupling=coupling)))(scales)
    accuracy = np.asarray(jax.vmap(model.accuracy, (0, None))(runs, test_set))
    right.plot(scales[1:-1], accuracy[1:-1], "o-", color=color, markersize=4)
    right.plot(scales[-1], accuracy[-1], "kx", markersize=9)
    right.axhline(accuracy[0], color="grey", linestyle="--", linewidth=0.8)
    print(f"{coupling}: accuracy {accuracy[-1]:.3f} with b = {choice.scale:.4f}")
left.set(title="P(vote = sign of the mean)", xlabel="b", xscale="log")
right.set(title=f"test accuracy after {NUM_STEPS} steps", xlabel="b", xscale="log")
left.legend()
plt.show()

# %% [markdown]
# ## Systematic coupling
#
# `coupling="systematic"` lets the workers take equally spaced quantiles of the noise,
# in random order: each worker's noise keeps its law, but together they leave less to
# chance. How much less? One coordinate, 101 workers of whom ten hold the whole mean;
# the counts of + votes have the same expectation and very different spreads. A vote
# errs where the count falls below 51 (dashed).

# %%
few = np.where(np.arange(101) < 10, 1.0, 0.0)  # the mean is .1, the median 0


def count_votes(noise):
    add_noise = jm.add_worker_noise(noise, key=0)
    stacked = jnp.asarray(few, jnp.float32)[:, None]  # [M, 1]: one coordinate

    def count(state, _):
        noisy, state = add_noise.update(stacked, state)
        return state, jnp.sum(noisy > 0)

    start = add_noise.init(stacked[0])
    return np.asarray(jax.lax.scan(count, start, length=NUM_COUNTS)[1])


figure, panel = plt.subplots(figsize=(6, 3.2), layout="constrained")
for coupling, color in (("independent", "C0"), ("systematic", "C2")):
    noise = jm.noise.gaussian(3 * few.std(), coupling)
    counts = count_votes(noise)
    exact = jm.theory.vote_probability(few, noise).plus
    print(f"{coupling}: P(+) = {exact:.3f} exactly, {np.mean(counts > 50):.3f} counted")
    bins = np.arange(25.5, 80.5)
    panel.hist(counts, bins, density=True, color=color, alpha=0.5, label=coupling)
panel.axvline(50.5, color="black", linestyle="--", linewidth=0.8)
panel.set(title="+ votes of 101 workers", xlabel="count", yticks=[])
panel.legend()
plt.show()

# %% [markdown]
# From a finite b on, the systematic median is *exactly* unbiased: `unbiased_scale`
# knows from where. Independent noise never is. What does that buy? Bias and standard
# deviation of the median of 1, 2 and 10 under uniform noise:

# %%
exact_from = float(jm.theory.unbiased_scale(values, "uniform", mean_only=True))
print(f"the mean is exact from b = {exact_from:.4f} on")
for scale in (0.5 * exact_from, exact_from, 2 * exact_from, 4 * exact_from):
    for coupling in ("independent", "systematic"):
        noise = jm.noise.uniform(scale, coupling)
        bias = jm.theory.median_bias(values, noise)
        deviation = jm.theory.median_moments(values, noise)[1] ** 0.5
        print(f"b = {scale:5.2f} {coupling:11} bias {bias:8.4f}, sd {deviation:6.3f}")

# %% [markdown]
# What noise cannot do: with b below the spread of the gradients the bias remains, and
# systematic noise makes a wrong vote surer. Noise large enough to turn the median into
# a mean turns its robustness down with it: [04](04_hostile_workers.ipynb). Workers who
# share the noise's seed share it with everybody: no privacy claim survives.

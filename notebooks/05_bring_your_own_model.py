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
# # Bring your own model and optimizer
#
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/jaxmedian/jaxmedian/blob/main/notebooks/05_bring_your_own_model.ipynb)
#
# A model enters as a plain function `loss(params, batch)` of *one* worker's batch; an
# optimizer as an optax chain with exactly one aggregator in it. Here are three ways to
# write the first, the usual recipes for the second, checkpoints, and what may stand
# before and after an aggregator: with the error you get where it may not.

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
NUM_WORKERS = 2 if SMOKE else 10
NUM_STEPS = 4 if SMOKE else 400
CHUNK = 2 if SMOKE else 20  # steps between two measurements
BATCH_SIZE = 32
HIDDEN = 8 if SMOKE else 32
RATE = 1e-2  # of votes: the length of every coordinate's step
SCALE = 0.1  # b, the standard deviation of one worker's noise

# %%
import contextlib
import tempfile

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import linen, nnx

import jaxmedian as jm
from experiments.common.data.digits import load_digits8x8
from experiments.common.harness.plots import use_look

use_look()
digits = load_digits8x8(seed=0)  # scikit-learn's: 8x8 pixels, 0 to 16
split = jm.splits.by_label(digits.train_labels, NUM_WORKERS, seed=0)
indices = split.indices[:, : split.sizes.min()]  # equally many for every worker
worker_data = {
    "images": jnp.asarray(digits.train_images[indices], jnp.float32) / 16,
    "labels": jnp.asarray(digits.train_labels[indices]),
}  # leaves [M, n, ...]
test_images = jnp.asarray(digits.test_images, jnp.float32) / 16
batches = jm.mini_batches(worker_data, BATCH_SIZE)
noise = jm.noise.uniform(SCALE, "systematic")

# %% [markdown]
# ## The loss: plain JAX, flax Linen, flax NNX
#
# Whatever the library, two things are needed: a tree of parameters, and a function from
# it and one worker's batch to a scalar. Nothing in it knows of workers.

# %%
cross_entropy = optax.softmax_cross_entropy_with_integer_labels


def plain_model(key):
    keys = jax.random.split(key)
    params = {
        "hidden": jax.random.normal(keys[0], (64, HIDDEN)) / 8,
        "bias": jnp.zeros(HIDDEN),
        "readout": jax.random.normal(keys[1], (HIDDEN, 10)) / HIDDEN**0.5,
    }

    def logits(params, images):
        hidden = jax.nn.relu(images @ params["hidden"] + params["bias"])
        return hidden @ params["readout"]

    return params, logits


def linen_model(key):
    layers = [linen.Dense(HIDDEN), linen.relu, linen.Dense(10)]
    module = linen.Sequential(layers)
    params = module.init(key, jnp.zeros((1, 64)))
    return params, module.apply


def nnx_model(key):
    rngs = nnx.Rngs(key)
    first, last = nnx.Linear(64, HIDDEN, rngs=rngs), nnx.Linear(HIDDEN, 10, rngs=rngs)
    graph, params = nnx.split(nnx.Sequential(first, nnx.relu, last))
    return params, lambda params, images: nnx.merge(graph, params)(images)


def loss_of(logits):
    def loss(params, batch):
        return jnp.mean(cross_entropy(logits(params, batch["images"]), batch["labels"]))

    return loss


def accuracy_of(logits):
    def accuracy(params, grads, updates):
        hits = jnp.argmax(logits(params, test_images), axis=1) == digits.test_labels
        return {"accuracy": jnp.mean(hits)}

    return accuracy


# %% [markdown]
# Do they train alike? The same noisy vote for each:

# %%
models = {"plain JAX": plain_model, "Linen": linen_model, "NNX": nnx_model}
figure, panel = plt.subplots(figsize=(6, 3), layout="constrained")
for name, build in models.items():
    params, logits = build(jax.random.key(0))
    result = jm.run(
        loss_of(logits),
        jm.noisy_sign_sgd(RATE, noise, key=0),
        params,
        batches,
        NUM_STEPS,
        key=0,
        chunk=CHUNK,
        metrics=[accuracy_of(logits)],
    )
    panel.plot(result.metrics["step"], result.metrics["accuracy"], label=name)
panel.set(title="test accuracy, one class a worker", xlabel="step", ylim=(0, 1))
panel.legend()
plt.show()

# %% [markdown]
# ## The optimizer: before and after the vote
#
# Each part of a chain stands on one side of the aggregator. Before it, updates are `[M,
# ...]`, one row a worker; what keeps state there is lifted by `jm.per_worker`, which
# runs it once a worker. After it, updates have the parameters' shapes and everything in
# optax works as ever. A vote has no size, so clipping or scaling gradients before it
# changes nothing unless noise comes in between.

# %%
vote = jm.majority_vote(noise, key=0)
decaying = optax.cosine_decay_schedule(3 * RATE, NUM_STEPS)
recipes = {
    "vote without noise": optax.chain(jm.majority_vote(), optax.sgd(RATE)),
    "vote": optax.chain(vote, optax.sgd(RATE)),
    "vote, decaying step": optax.chain(vote, optax.sgd(decaying)),
    "momentum before (Signum)": optax.chain(
        jm.per_worker(optax.ema(0.9), NUM_WORKERS), vote, optax.sgd(decaying)
    ),
    "momentum after": optax.chain(vote, optax.sgd(0.3 * RATE, momentum=0.9)),
    "Adam after": optax.chain(vote, optax.adam(RATE)),
    "Distributed Lion": optax.chain(
        jm.per_worker(optax.scale_by_lion(), NUM_WORKERS),
        jm.majority_vote(ties="random", key=0),
        optax.add_decayed_weights(0.1),
        optax.scale_by_learning_rate(decaying),
    ),
    "weight decay": optax.chain(
        vote, optax.add_decayed_weights(0.1), optax.sgd(decaying)
    ),
}
params, logits = plain_model(jax.random.key(0))
loss, accuracy = loss_of(logits), accuracy_of(logits)


def train(optimizer, **options):
    settings = {"key": 0, "chunk": CHUNK, "metrics": [accuracy]} | options
    return jm.run(loss, optimizer, params, batches, NUM_STEPS, **settings)


results = {name: train(optimizer) for name, optimizer in recipes.items()}

# %% [markdown]
# Which of them suits one class a worker? With noise all of them train, and one seed
# does not rank them. Without noise the vote stalls. Distributed Lion takes the sign at
# each worker and adds no noise: between workers of different classes it is a plain
# vote, and fails like one.

# %%
figure, panel = plt.subplots(figsize=(7.5, 3.4), layout="constrained")
for name, result in results.items():
    panel.plot(result.metrics["step"], result.metrics["accuracy"], label=name)
    print(f"{name:26} {result.metrics['accuracy'][-1]:.3f}")
panel.set(title="test accuracy, one class a worker", xlabel="step", ylim=(0, 1))
panel.legend(loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

# %% [markdown]
# Schedules: the noise scale takes one too, and `optax.inject_hyperparams` reaches both
# it and the learning rate through a function that builds the chain.


# %%
def build(learning_rate, scale):
    return jm.noisy_sign_sgd(learning_rate, jm.noise.uniform(scale), key=0)


scheduled = jm.noisy_sign_sgd(
    decaying, jm.noise.uniform(optax.linear_schedule(0.2, 0.05, NUM_STEPS)), key=0
)
injected = optax.inject_hyperparams(build, hyperparam_dtype=jnp.float32)(RATE, SCALE)
state = injected.init(params)
state.hyperparams["scale"] = jnp.float32(0.05)  # by hand, between two steps
_, state, _ = jm.make_step(loss, injected)(params, state, batches(jax.random.key(0), 0))
print({name: float(value) for name, value in state.hyperparams.items()})
print(f"scheduled: {train(scheduled).metrics['accuracy'][-1]:.3f}")

# %% [markdown]
# ## Checkpoints
#
# `jm.run(..., checkpoint=folder)` saves at chunk edges, and the same call goes on after
# a kill. Does a run that was stopped half-way end where an unbroken one does? To the
# bit: keys live in the optimizer's state, and a batch is a function of the key and the
# step.

# %%
signum = recipes["momentum before (Signum)"]
with tempfile.TemporaryDirectory() as folder:
    half = train(
        signum, checkpoint=folder, on_chunk=lambda step, row: step >= NUM_STEPS // 2
    )
    resumed = train(signum, checkpoint=folder)
unbroken = results["momentum before (Signum)"]
print(f"stopped at step {half.step}, resumed to step {resumed.step}")
pairs = zip(
    jax.tree.leaves((resumed.params, resumed.opt_state)),
    jax.tree.leaves((unbroken.params, unbroken.opt_state)),
    strict=True,
)
bits = [
    np.array_equal(jax.random.key_data(a), jax.random.key_data(b))
    if jnp.issubdtype(a.dtype, jax.dtypes.prng_key)
    else np.array_equal(a, b)
    for a, b in pairs
]
print(f"parameters and state are bit for bit those of the unbroken run: {all(bits)}")

# %% [markdown]
# ## What may not stand where
#
# | before the aggregator, `[M, ...]` | the aggregator | after it, `[...]` |
# |---|---|---|
# | `add_worker_noise`, attacks | `majority_vote` | learning rates, schedules |
# | elementwise and stateless: `optax.clip` | `coordinate_median` | momentum, Adam |
# | `per_worker(anything of optax)` | `worker_mean` | weight decay, `MultiSteps` |
#
# What cannot work is refused, with a remedy in the message. What works but is rarely
# meant is not: `optax.clip_by_global_norm` before the aggregator clips all workers by
# the norm of them together. First what concerns the worker axis: gradients of one
# worker in place of all, no aggregator, two of them, a worker transform behind it.


# %%
@contextlib.contextmanager
def refused(what):
    try:
        yield
    except (TypeError, ValueError) as error:
        message = str(error).splitlines()[0]
        print(f"{what}\n  {type(error).__name__}: {message}\n")
    else:
        raise AssertionError(f"{what}: not refused")


batch = batches(jax.random.key(0), 0)


def one_step(*transforms):
    optimizer = optax.chain(*transforms)
    return jm.make_step(loss, optimizer)(params, optimizer.init(params), batch)


grads_of_one = jax.grad(loss)(params, jax.tree.map(lambda leaf: leaf[0], batch))
with refused("gradients without a worker axis"):
    tx = jm.sign_sgd(RATE)
    tx.update(grads_of_one, tx.init(params), params)
with refused("no aggregator"):
    one_step(optax.sgd(RATE))
with refused("two aggregators"):
    one_step(jm.coordinate_median(), jm.majority_vote())
with refused("a worker transform after the aggregator"):
    one_step(jm.majority_vote(), jm.add_worker_noise(noise, key=0))
with refused("updates that still have their worker axis"):
    jm.apply_updates(params, jm.worker_grads(loss)(params, batch))

# %% [markdown]
# Then what keeps state before the vote, and options that contradict each other.
# Momentum without `per_worker` starts with the state of one worker and returns that of
# all, by broadcasting: steps and runs refuse it.

# %%
with refused("momentum before the vote without per_worker"):
    train(optax.chain(optax.trace(0.9), jm.majority_vote(), optax.sgd(RATE)))
with refused("per_worker for another number of workers"):
    one_step(jm.per_worker(optax.trace(0.9), 7), jm.majority_vote())
with refused("a number in place of a noise"):
    jm.noisy_sign_sgd(RATE, 0.1, key=0)
with refused("noise without a key"):
    jm.majority_vote(noise)
with refused("a key and nothing to draw"):
    jm.majority_vote(key=0)
with refused("one bit that should say zero"):
    jm.majority_vote(transport="packed")

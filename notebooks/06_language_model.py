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
# # A language model by votes
#
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/jaxmedian/jaxmedian/blob/main/notebooks/06_language_model.ipynb)
#
# Eight workers train one small GPT, and each of them reads other text. Distributed Lion
# asks every worker for one bit per coordinate, the sign of its Lion update, and takes a
# majority vote. Where the texts differ, the vote follows the median of the workers, not
# their mean, and falls behind. Noise before the sign closes a part of the gap, and all
# of it once the workers vote on their gradients and the momentum comes after the vote.
# [The experiments](../experiments/README.md#data-and-other-methods) say what comes of
# it with larger models and real text.

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
TEXT = None  # a file of your own, with speakers on lines of their own; None invents one
NUM_WORKERS = 2 if SMOKE else 8
NUM_STEPS = 4 if SMOKE else 400
CHUNK = 2 if SMOKE else 40  # steps between two measurements
BATCH_SIZE = 2  # windows per worker and step
CONTEXT = 16 if SMOKE else 32  # characters that the model looks back on
LAYERS = 1 if SMOKE else 2
WIDTH = 8 if SMOKE else 48
RATE = 3e-3  # the length of every coordinate's step, at first
FACTOR = 2.0  # noise over the running root mean square of each coordinate
EVERY = 50  # steps between two looks at it
WRITTEN = 20 if SMOKE else 300  # characters to generate

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import jaxmedian as jm
from experiments.common.data import texts
from experiments.common.harness.plots import use_look
from experiments.common.training.transformer import language

use_look()
play = texts.invented_play(2 * NUM_WORKERS, 4000)
if TEXT is not None:
    play = texts.read_text(Path(TEXT))
print(play[:300])

# %% [markdown]
# ## Who reads what
#
# Every worker gets the speeches of its own speakers. In the invented play each speaker
# has words of its own; the grammar is the same for all. The last tenth of the play is
# held out, and no worker trains on it.

# %%
source = texts.speakers_parts(play, NUM_WORKERS)
corpus = texts.build_corpus(source, CONTEXT, num_windows=200)
for worker, part in enumerate(source.parts):
    speakers = {line for line in part.split("\n") if line.endswith(":")}
    print(f"worker {worker}: {len(part):6,} characters of {sorted(speakers)}")

# %% [markdown]
# ## The model
#
# A GPT over characters, as in nanoGPT, in flax NNX: here two layers of 48 channels.
# `losses(params, windows)` is all that training sees of it.

# %%
model = language(
    len(corpus.characters),
    context=CONTEXT,
    layers=LAYERS,
    heads=2,
    width=WIDTH,
    seed=0,
)
num_parameters = sum(leaf.size for leaf in jax.tree.leaves(model.params))
print(f"{num_parameters:,} parameters, {len(corpus.characters)} characters")


def loss(params, windows):
    return jnp.mean(model.losses(params, windows))


indices = jnp.asarray(corpus.split.indices)  # [M, n], padded behind each worker's own
sizes = jnp.asarray(corpus.split.sizes)
draw = jm.mini_batches(indices, BATCH_SIZE, replace=True, sizes=sizes)
text, starts = jnp.asarray(corpus.text), jnp.asarray(corpus.starts)
held_out = jnp.asarray(corpus.held_out)


def next_batch(key, step):
    first = starts[draw(key, step)]  # [M, BATCH_SIZE]
    return text[first[..., None] + jnp.arange(CONTEXT + 1)]


# %% [markdown]
# ## Four optimizers
#
# Lion on the mean of the gradients sends 32 bits per coordinate. Distributed Lion sends
# one: every worker keeps a momentum of its own and votes with the sign of Lion's
# interpolation. The same vote with noise before the sign, whose scale follows each
# coordinate, sends 32 bits more every 50 steps: 1.64 in all. And so does the last: its
# workers vote on their noisy gradients and keep nothing, and Lion, with its one
# momentum, follows the vote as it follows the mean. (`mean_of_signs` in place of
# `majority_vote` is the averaging form.)

# %%
schedule = optax.cosine_decay_schedule(RATE, NUM_STEPS, 0.1)
scale = jm.noise.per_coordinate(FACTOR, "rms", every=EVERY)
noise = jm.noise.uniform(scale, "systematic")
noisy_bits = 1 + 32 / EVERY
optimizers = {
    "Lion on the mean": (optax.chain(jm.worker_mean(), optax.lion(schedule)), 32),
    "Distributed Lion": (jm.distributed_lion(schedule, num_workers=NUM_WORKERS), 1),
    "with noise": (
        jm.distributed_lion(schedule, num_workers=NUM_WORKERS, noise=noise, key=0),
        noisy_bits,
    ),
    "Lion after a noisy vote": (
        optax.chain(jm.majority_vote(noise, 0), optax.lion(schedule)),
        noisy_bits,
    ),
}


def measure(params, grads, updates):
    return {"held out": loss(params, held_out)}


results = {
    name: jm.run(
        loss,
        optimizer,
        model.params,
        next_batch,
        NUM_STEPS,
        jax.random.key(1),
        chunk=CHUNK,
        metrics=[measure],
    )
    for name, (optimizer, _) in optimizers.items()
}
for name, result in results.items():
    print(f"{name:23} {result.metrics['held out'][-1]:.3f} nats per character")

# %% [markdown]
# ## Loss against steps, and against bytes
#
# A worker sends its bits up once per step. On the right, the same curves against what
# it has sent: with the bytes of one step of the mean, a vote takes 32 steps, a noisy
# one 19.

# %%
figure, panels = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained", sharey=True)
for name, result in results.items():
    steps = np.asarray(result.metrics["step"])
    megabytes = steps * optimizers[name][1] / 8 * num_parameters / 1e6
    for axes, x in zip(panels, (steps, megabytes), strict=True):
        axes.plot(x, result.metrics["held out"], label=name)
panels[0].set(xlabel="step", ylabel="nats per character, held out")
panels[1].set(xlabel="megabytes sent up by a worker", xscale="log")
panels[0].legend()
plt.show()

# %% [markdown]
# ## What it writes
#
# Before training all characters are alike. Afterwards the model has learned names,
# speeches and which words belong to whom, from bits alone.

# %%
opening = jnp.asarray(corpus.held_out[0, :CONTEXT])
trained = results["Lion after a noisy vote"].params
for when, params in (("before", model.params), ("after", trained)):
    written = model.continue_text(params, opening, WRITTEN, jax.random.key(2))
    print(f"--- {when} ---\n{corpus.written(written.tolist())}\n")

# %% [markdown]
# ## Why the noise is there
#
# Where one worker alone uses a letter, its vote moves the coordinates of that letter
# one way, and seven others move them back: a vote without noise errs in the same way
# step after step. One noisy vote errs more, but in another way each time, and a
# momentum after the vote adds many of them up. Here 1, 8 and 64 votes on the same
# gradients, at the parameters where training ended: how steeply a step along the signs
# of their sum descends, where the signs of the mean would be 1.
#
# Why does it end below Lion on the mean, which reads every gradient in full? Lion takes
# a sign too, that of its momentum, and moves every coordinate by the same length,
# however small its entry. What noise is left in the momentum turns the small entries'
# signs back and forth: it does to Lion what it did to the vote. Noise on the gradients
# before a mean of floats (`add_worker_noise`, then `worker_mean`) helps Lion as much.

# %%
batch = next_batch(jax.random.key(3), jnp.int32(0))
grads = jm.worker_grads(loss)(trained, batch)
mean = jax.tree.map(lambda g: g.mean(axis=0), grads)


def steepness(direction):
    def along(x):
        products = jax.tree.map(lambda a, g: jnp.vdot(jnp.sign(a), g), x, mean)
        return sum(jax.tree.leaves(products))

    return float(along(direction) / along(mean))


def add_up(rule, num_votes):
    def cast_vote(carry, _):
        total, state = carry
        votes, state = rule.update(grads, state, trained)
        return (jax.tree.map(jnp.add, total, votes), state), None

    start = jax.tree.map(jnp.zeros_like, trained), rule.init(trained)
    return jax.lax.scan(cast_vote, start, length=num_votes)[0][0]


for name, rule in (
    ("without noise", jm.majority_vote()),
    ("with noise", jm.majority_vote(noise, 0)),
):
    steep = [steepness(add_up(rule, count)) for count in (1, 8, 64)]
    print(f"{name:13}:", ", ".join(f"{value:.2f}" for value in steep))

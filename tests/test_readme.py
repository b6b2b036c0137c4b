"""Every Python block of the front page, the guide and the site's pages runs, in order.

Each page has one namespace, and what it says of its results is checked after it ran.
"""

import re
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
PAGES = (
    "README.md",
    "notebooks/GUIDE.md",
    ".github/CONTRIBUTING.md",
    "experiments/README.md",
)
README = (ROOT / "README.md").read_text()


def blocks_of(text):
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def anchors_of(text):
    """The names that headings have as targets of links."""
    headings = re.findall(r"(?m)^#+ (.*)$", text)
    return {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}


def run_blocks(page):
    """Runs a page; every `result` of `jm.run` that has several rows must descend."""
    blocks = blocks_of((ROOT / page).read_text())
    for package in ("equinox", "flax", "haiku", "safetensors", "tensorboardX"):
        if any(re.search(rf"(import|from) {package}\b", block) for block in blocks):
            pytest.importorskip(package)
    namespace, last = {}, None
    for block in blocks:
        exec(compile(block, page, "exec"), namespace)
        result = namespace.get("result")
        if result is not last and len(result.metrics["step"]) > 1:
            losses = result.metrics["loss"]
            assert losses[-1] < losses[0], block
        last = result
    return namespace


@pytest.mark.parametrize(
    "page", ["README.md", "notebooks/GUIDE.md", "notebooks/pages/concepts.md"]
)
def test_every_python_block_runs(page):
    assert run_blocks(page)


def test_the_start_page_trains_as_it_says(capsys):
    page = "notebooks/pages/index.md"
    namespace = run_blocks(page)
    (said,) = re.findall(r"```text\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    for line in said.splitlines():
        name, accuracy = re.fullmatch(r"(.*?) +(\S+)", line).groups()
        found = namespace["results"][name].metrics["accuracy"][-1]
        assert abs(found - float(accuracy)) < 0.04, name  # gradients differ by XLA
    assert 0.10 < namespace["best"].scale < 0.20
    assert namespace["best"].coupling == "systematic"


def test_the_recipes_for_models():
    namespace = run_blocks("notebooks/pages/recipes/models.md")
    worker_data, trained = namespace["worker_data"], namespace["trained"]
    with jax.numpy_rank_promotion("allow"):
        scores = trained(worker_data["x"].reshape(-1, 8))  # statistics pooled
    hits = jnp.argmax(scores, axis=1) == worker_data["y"].ravel()
    assert hits.mean() > 0.8


def test_the_recipes_for_training():
    namespace = run_blocks("notebooks/pages/recipes/training.md")
    params, loss = namespace["params"], namespace["loss"]
    key = jax.random.key(1)
    # Frozen stays, to the bit; a gradient of 0 alone does not protect from the noise.
    frozen_loss = lambda params, batch: loss(  # noqa: E731
        {**params, "in": jax.lax.stop_gradient(params["in"])}, batch
    )
    jm, next_batch = namespace["jm"], namespace["next_batch"]
    bare = jm.noisy_sign_sgd(1e-2, namespace["noise"], key=0)
    for tx, stays in (
        (bare, False),
        (
            namespace["optax"].chain(
                bare,
                namespace["optax"].masked(
                    namespace["optax"].set_to_zero(), namespace["frozen"]
                ),
            ),
            True,
        ),
    ):
        moved = jm.run(frozen_loss, tx, params, next_batch, 1, key=0).params
        assert bool(jnp.array_equal(moved["in"], params["in"])) == stays
        assert not jnp.array_equal(moved["out"], params["out"])
    # Accumulated over micro-batches, the gradient is that of the whole batch.
    whole = jm.worker_grads(loss)(params, next_batch(key, 0))
    parts = jm.worker_grads(namespace["accumulated"](loss))(
        params, namespace["micro_batches"](key, 0)
    )
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    # Adapters alone have moved.
    groups = namespace["group_of"]
    assert groups((jax.tree_util.DictKey("adapter_up"),), None) == "train"


def test_the_recipes_for_devices_logs_and_files(monkeypatch):
    logged = {}
    wandb = types.SimpleNamespace(
        init=lambda project, mode: None,
        log=lambda row, step: logged.update({step: row}),
        finish=lambda: None,
    )
    monkeypatch.setitem(sys.modules, "wandb", wandb)  # nothing leaves this machine
    namespace = run_blocks("notebooks/pages/recipes/systems.md")
    assert list(logged) == [20, 40, 60, 80, 100]
    losses = [row["loss"] for row in logged.values()]
    np.testing.assert_array_equal(losses, namespace["result"].metrics["loss"])
    assert any("tfevents" in path.name for path in Path(namespace["folder"]).iterdir())
    state = namespace["result"].opt_state
    words = namespace["with_words"]
    for name in ("opt_state", "from_flax", "from_safetensors"):
        read = namespace[name]
        assert jax.tree.structure(read) == jax.tree.structure(state), name
        for a, b in zip(*map(jax.tree.leaves, (read, state)), strict=True):
            assert a.dtype == b.dtype, name
            np.testing.assert_array_equal(words(a), words(b))


def test_the_loop_of_the_readme_hovers_at_the_mean():
    namespace = {}
    for block in blocks_of(README)[:2]:
        exec(block, namespace)
    result = namespace["result"]
    hovering = (
        0.001 * 60.67 / 2
    ) ** 0.5  # AR(1): sqrt(delta V / 2) and V = Var[median]
    assert abs(result.params.item() - 13 / 3) < 5 * hovering
    assert result.metrics["mean_median_gap"][-1] == pytest.approx(7 / 3, rel=1e-5)


@pytest.mark.parametrize("page", PAGES)
def test_every_link_inside_the_repository_leads_somewhere(page):
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        path = (ROOT / page).parent / file if file else ROOT / page
        assert path.exists(), target
        if anchor:
            assert anchor in anchors_of(path.read_text()), target


def test_the_skeleton_of_an_aggregator_is_one():
    """The block of CONTRIBUTING.md, pasted into the module it is for."""

    from jaxmedian.transforms import vote

    namespace = dict(vars(vote))
    (block,) = blocks_of((ROOT / ".github/CONTRIBUTING.md").read_text())
    exec(compile(block, "CONTRIBUTING.md", "exec"), namespace)
    least = namespace["worker_minimum"]()
    grads = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)
    for mask in ([True] * 5, [False, True, True, False, True], [False] * 5):
        updates, _ = least.update(
            grads, least.init(None), jnp.zeros(8), worker_mask=jnp.asarray(mask)
        )
        expected = grads[mask].min(axis=0) if any(mask) else np.zeros(8)
        np.testing.assert_array_equal(updates, expected)

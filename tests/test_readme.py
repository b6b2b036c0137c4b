"""Every Python block of README and GUIDE runs, in order, in one namespace for each."""

import re
from pathlib import Path

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


@pytest.mark.parametrize("page", ["README.md", "notebooks/GUIDE.md"])
def test_every_python_block_runs(page):
    blocks = blocks_of((ROOT / page).read_text())
    assert len(blocks) >= 2
    namespace = {}
    for block in blocks:
        exec(compile(block, page, "exec"), namespace)


def test_the_loop_of_the_readme_hovers_at_the_mean():
    namespace = {}
    for block in blocks_of(README)[:2]:
        exec(block, namespace)
    result = namespace["result"]
    variance = 5.91  # of the median, by `theory.median_moments` at b = 3.897
    hovering = (0.001 * variance / 2) ** 0.5  # an AR(1) process
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

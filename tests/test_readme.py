"""Every Python block of the README runs, in order, in one namespace."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_every_python_block_runs():
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) >= 3
    namespace = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)


def test_the_loop_of_the_readme_hovers_at_the_mean():
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    namespace = {}
    for block in blocks[:2]:
        exec(block, namespace)
    result = namespace["result"]
    hovering = (
        0.001 * 60.67 / 2
    ) ** 0.5  # AR(1): sqrt(delta V / 2) and V = Var[median]
    assert abs(result.params.item() - 13 / 3) < 5 * hovering
    assert result.metrics["mean_median_gap"][-1] == pytest.approx(7 / 3, rel=1e-5)


@pytest.mark.parametrize("target", re.findall(r"\]\(([^)#]+)\)", README))
def test_every_link_inside_the_repository_leads_somewhere(target):
    if not target.startswith("https://"):
        assert (ROOT / target).exists()

"""What the benchmark's peers draw has the law and the coupling that ours has."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("matplotlib")

import jaxmedian as jm
from experiments.common.harness.installed import installed_torch
from experiments.systems.benchmark import kernels

M, SIZE = 11, 20_000
NOISES = [
    *(jm.noise.Noise(law, kernels.SCALE) for law in jm.noise.LAWS),
    *(
        jm.noise.Noise(law, kernels.SCALE, "systematic")
        for law in ("gaussian", "uniform")
    ),
]


@pytest.mark.parametrize("noise", NOISES, ids=lambda n: f"{n.law}, {n.coupling}")
def test_peers_draw_the_noise_that_ours_draws(noise):
    x = np.zeros((M, SIZE), np.float32)
    draw = getattr(kernels, f"_{noise.coupling}")
    drawn = [draw(jax.random.key(0), x.shape, noise.law)]
    if (torch := installed_torch()) is not None:
        ways = kernels._torch_noise(torch, x, noise).values()
        drawn += [jnp.asarray(way().numpy()) / kernels.SCALE for way in ways]
    for xi in drawn:
        places = np.sort(np.float64(noise.cdf(np.asarray(xi))), axis=0)
        everyone = np.sort(places.ravel())
        expected = (np.arange(M * SIZE) + 0.5) / (M * SIZE)
        assert np.abs(everyone - expected).max() < 0.006  # Kolmogorov: 2.8 / sqrt(n)
        gaps = np.diff(places, axis=0)
        assert np.allclose(gaps, 1 / M, atol=1e-4) == (noise.coupling == "systematic")

"""Every rule and attack that peers have too takes the cases it is compared on."""

from unittest import mock

import jax
import jax.numpy as jnp
import pytest

from experiments.hostile.peers import Config, _first_update
from experiments.hostile.peers.pairs import _byzfl_attacks, _byzfl_rules, _krum_rules

PEER = mock.MagicMock()  # whatever is asked of it: theirs is not called
PAIRS = [*_byzfl_rules(PEER), *_byzfl_attacks(PEER), *_krum_rules(PEER)]


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_ours_takes_every_case_and_the_times(pair):
    config = Config()
    shapes = [shape for shape in config.shapes if shape[0] <= pair.most_workers]
    for num_workers, f in [*shapes, (config.workers, config.hostile)]:
        rows = jax.ShapeDtypeStruct((num_workers, 3), jnp.float32)
        update = jax.eval_shape(_first_update(pair.ours(f)), rows)
        assert update.dtype == jnp.float32
        assert update.shape[-1:] == (3,)

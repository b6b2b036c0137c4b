"""A trial of `shakespeare`: text that is shared out, and a model for each seed."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common.data import texts
from experiments.common.harness.misuse import Misuse
from experiments.common.training.language import Language
from experiments.common.training.models import Classifier
from experiments.common.training.problems import Problem
from experiments.common.training.transformer import language
from experiments.methods.shakespeare.config import Config
from experiments.methods.shakespeare.perceptron import perceptron


class Trial(NamedTuple):
    """Text, shared out, and a model of it for each seed.

    Attributes:
      config: the settings.
      corpus: the text.
      model: that of seed 0; its functions serve all seeds.
      params: [S, ...], initial parameters.
    """

    config: Config
    corpus: texts.Corpus
    model: Language
    params: Any

    def problem(self, num_seeds: int) -> Problem:
        """Returns what the trainer wants; the samples are starts of windows."""
        text, width = jnp.asarray(self.corpus.text), self.config.context + 1

        def loss(params: Any, batch: Any) -> jax.Array:
            windows = text[batch["labels"][:, None] + jnp.arange(width)]
            return jnp.mean(self.model.losses(params, windows))

        return Problem(
            Classifier(self.model.params, loss, loss),
            jax.tree.map(lambda leaf: leaf[:num_seeds], self.params),
            jax.vmap(jax.random.key)(jnp.arange(num_seeds)),
            {"labels": jnp.asarray(self.corpus.starts)},
            validation={},
            test={"text": text},  # the loss reads it, and checkpoints are of it
            description="text",
        )

    def measure(self, params: Any) -> dict[str, jax.Array]:
        """Measures the losses, and writes."""
        measured = {
            "held_out_loss": self._loss(params, self.corpus.held_out),
            "written": self.write(params),
        }
        if len(self.corpus.validation):
            measured["validation_loss"] = self._loss(params, self.corpus.validation)
        return measured

    def _loss(self, params: Any, windows: np.ndarray) -> jax.Array:
        return jnp.mean(self.model.losses(params, jnp.asarray(windows)))

    def write(self, params: Any) -> jax.Array:
        """Writes on from the beginning of the held-out text."""
        first = jnp.asarray(self.corpus.held_out[0, : self.config.context])
        return self.model.continue_text(
            params, first, self.config.sample, jax.random.key(0)
        )

    def num_parameters(self) -> int:
        """Returns d."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.model.params))


def build_trial(config: Config, *, validate: bool = False) -> Trial:
    """Reads the text, shares it out, and initialises the models.

    Args:
      config: the settings.
      validate: whether to set text apart to choose settings by.
    """
    if config.texts is not None and config.text is not None:
        raise Misuse("give --text or --texts, not both.")
    if config.texts is not None and config.split != "contiguous":
        raise Misuse(
            f"give --texts or --split {config.split}, not both: each file of --texts "
            "is one worker's."
        )
    if config.texts is not None:
        source = texts.files_parts(config.texts, config.num_workers)
    else:
        if config.text is None:
            text = texts.invented_play(2 * config.num_workers, 4000)
        else:
            text = texts.read_text(config.text)
        by_speaker = config.split == "speakers" and config.num_workers > 1
        cut = texts.speakers_parts if by_speaker else texts.contiguous_parts
        source = cut(text, config.num_workers)
    corpus = texts.build_corpus(
        source, config.context, config.windows, config.fold_rare, validate=validate
    )
    models = [
        _build_model(config, len(corpus.characters), seed)
        for seed in range(config.num_seeds)
    ]
    params = jax.tree.map(lambda *rows: jnp.stack(rows), *[m.params for m in models])
    return Trial(config, corpus, models[0], params)


def _build_model(config: Config, characters: int, seed: int) -> Language:
    if config.model == "perceptron":
        return perceptron(
            characters, context=config.context, width=config.hidden, seed=seed
        )
    return language(
        characters,
        context=config.context,
        layers=config.layers,
        heads=config.heads,
        width=config.hidden,
        seed=seed,
    )

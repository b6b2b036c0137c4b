"""Text that workers share, the transformer against NumPy, claims that can fail."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

pytest.importorskip("matplotlib")
pytest.importorskip("flax")

from experiments.common.data import texts
from experiments.common.harness.misuse import Misuse
from experiments.common.training.transformer import is_matrix, language
from experiments.methods import shakespeare
from experiments.methods.shakespeare import claims
from experiments.methods.shakespeare.contenders import CONTENDERS
from experiments.methods.shakespeare.perceptron import perceptron

CONTEXT = 8
PLAY = texts.invented_play(num_speakers=6, num_speeches=200)


# --- text -----------------------------------------------------------------------------


def windows_of(corpus, worker):
    """Every window that a worker may be served, as text."""
    held = corpus.split.indices[worker][: corpus.split.sizes[worker]]
    for start in corpus.starts[held]:
        yield corpus.written(corpus.text[start : start + CONTEXT + 1])


@pytest.mark.parametrize("cut", [texts.contiguous_parts, texts.speakers_parts])
def test_workers_are_served_every_window_of_their_own_text(cut):
    source = cut(PLAY, 3)
    corpus = texts.build_corpus(source, CONTEXT, num_windows=6)
    for worker, part in enumerate(source.parts):
        kept = part[: len(part) - len(part) // 20]
        expected = [kept[i : i + CONTEXT + 1] for i in range(len(kept) - CONTEXT)]
        assert sorted(windows_of(corpus, worker)) == sorted(expected)


def test_contiguous_parts_are_the_text_and_a_tenth_is_held_out():
    source = texts.contiguous_parts(PLAY, 3)
    assert "".join(source.parts) + source.held_out[0] == PLAY
    assert len(source.held_out[0]) == len(PLAY) // 10
    assert max(map(len, source.parts)) - min(map(len, source.parts)) <= 1


def test_speakers_stay_whole_and_no_speech_is_lost():
    source = texts.speakers_parts(PLAY, 3)
    speakers = [
        {line for line in part.split("\n") if line.endswith(":")}
        for part in source.parts
    ]
    assert [len(s) for s in speakers] == [2, 2, 2]
    assert len(set.union(*speakers)) == 6
    kept = PLAY[: len(PLAY) - len(PLAY) // 10]
    said = "".join(source.parts).split("\n\n")
    assert sorted(filter(None, said)) == sorted(kept.split("\n\n"))


def test_a_line_that_ends_in_a_colon_within_a_speech_names_nobody():
    text = "ANN:\nHear this:\nno.\n\nBEN:\nWhat?\n\n" * 40
    source = texts.speakers_parts(text, 2)
    assert all(
        part.count("Hear this:") in (0, part.count("ANN:")) for part in source.parts
    )
    with pytest.raises(ValueError, match="has 2 speakers, fewer than the 3 workers"):
        texts.speakers_parts(text, 3)


def test_every_file_is_a_worker_and_holds_out_its_own_tenth(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(f"{name}{name}c " * 200)
    source = texts.files_parts(tmp_path, 2)
    assert set(source.parts[0]) == set("ac ")
    assert set(source.parts[1]) == set("bc ")
    corpus = texts.build_corpus(source, CONTEXT, num_windows=6)
    assert corpus.validation.shape == corpus.held_out.shape == (6, CONTEXT + 1)
    assert set(corpus.written(corpus.held_out[:3].ravel())) == set("ac ")
    with pytest.raises(ValueError, match=r"each of the 3 workers, or .* has 2"):
        texts.files_parts(tmp_path, 3)


def test_a_text_shorter_than_the_context_is_refused():
    source = texts.contiguous_parts(PLAY[:300], 2)
    with pytest.raises(
        ValueError, match="the validation text of worker 0 has 6 characters, and a win"
    ):
        texts.build_corpus(source, CONTEXT, num_windows=2)
    with pytest.raises(ValueError, match="the held-out text has 30 characters"):
        texts.build_corpus(
            texts.Source((PLAY,), (PLAY[:30],)), context=30, num_windows=2
        )


def test_a_character_that_training_lacks_is_refused_or_folded():
    source = texts.Source((PLAY + "é" * 5 + PLAY,), (PLAY[:100] + "ß" + PLAY[:100],))
    with pytest.raises(ValueError, match=r"lacks: 'ß'.*--fold-rare 10"):
        texts.build_corpus(source, CONTEXT, num_windows=300)
    corpus = texts.build_corpus(source, CONTEXT, num_windows=300, fold_rare=6)
    assert "é" not in corpus.characters
    assert corpus.characters[-1] == texts.RARE
    assert texts.RARE in corpus.written(corpus.held_out.ravel())
    kept = texts.build_corpus(source, CONTEXT, num_windows=300, fold_rare=5)
    assert "é" in kept.characters


def test_once_settings_are_chosen_all_but_what_is_held_out_is_trained_on():
    source = texts.contiguous_parts(PLAY, 2)
    corpus = texts.build_corpus(source, CONTEXT, num_windows=6, validate=False)
    assert corpus.written(corpus.text) == "".join(source.parts)
    assert corpus.validation.shape == (0, CONTEXT + 1)
    tuning = texts.build_corpus(source, CONTEXT, num_windows=6)
    np.testing.assert_array_equal(tuning.held_out, corpus.held_out)
    assert len(tuning.text) < len(corpus.text)


def test_what_is_no_text_is_refused(tmp_path):
    (tmp_path / "picture.txt").write_bytes(b"\x89PNG\xff")
    with pytest.raises(ValueError, match=r"picture.txt is no UTF-8 text"):
        texts.read_text(tmp_path / "picture.txt")
    with pytest.raises(Misuse, match=r"none.txt cannot be read: No such file"):
        texts.read_text(tmp_path / "none.txt")
    with pytest.raises(Misuse, match=r"cannot be read: Is a directory"):
        texts.read_text(tmp_path)


# --- the transformer ------------------------------------------------------------------


SIZES = {"context": CONTEXT, "layers": 2, "heads": 2, "width": 6, "seed": 3}


def slow_losses(params, windows):
    """The forward pass of a GPT in float64, one window and position at a time."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    tree = params.to_pure_dict()
    tokens, positions = (tree[n]["embedding"] for n in ("tokens", "positions"))
    width = tokens.shape[1]

    def norm(x, scale):
        centred = x - x.mean()
        return centred / np.sqrt((centred**2).mean() + 1e-5) * scale

    result = np.zeros((len(windows), windows.shape[1] - 1))
    for number, window in enumerate(windows):
        xs = [tokens[c] + positions[i] for i, c in enumerate(window[:-1])]
        for layer in range(SIZES["layers"]):
            block = tree["blocks"][layer]
            first, second = (block["norms"][i]["scale"] for i in range(2))
            joined = [norm(x, first) @ block["attend"]["kernel"] for x in xs]
            mixed = []
            for i in range(len(xs)):
                heads = []
                for head in np.split(np.arange(width), SIZES["heads"]):
                    query = joined[i][head]
                    scores = [query @ joined[j][width + head] for j in range(i + 1)]
                    weights = scipy.special.softmax(
                        np.array(scores) / np.sqrt(len(head))
                    )
                    values = [joined[j][2 * width + head] for j in range(i + 1)]
                    heads.append(weights @ np.array(values))
                mixed.append(np.concatenate(heads) @ block["attended"]["kernel"])
            xs = [x + m for x, m in zip(xs, mixed, strict=True)]
            for i, x in enumerate(xs):
                hidden = norm(x, second) @ block["expand"]["kernel"]
                hidden = hidden * scipy.special.ndtr(hidden)  # GELU, exact
                xs[i] = x + hidden @ block["contract"]["kernel"]
        for i, x in enumerate(xs):
            logits = tokens @ norm(x, tree["norm"]["scale"])
            result[number, i] = scipy.special.logsumexp(logits) - logits[window[i + 1]]
    return result


def shaken(params, seed=0):
    """Parameters far from their start, where every term counts."""
    leaves, structure = jax.tree.flatten(params)
    rng = np.random.default_rng(seed)
    return jax.tree.unflatten(
        structure,
        [
            leaf + jnp.asarray(0.5 * rng.normal(size=leaf.shape), leaf.dtype)
            for leaf in leaves
        ],
    )


def test_the_transformer_is_its_slow_form():
    model = language(11, **SIZES)
    params = shaken(model.params)
    windows = np.random.default_rng(1).integers(0, 11, (3, CONTEXT + 1))
    got = jax.jit(model.losses)(params, jnp.asarray(windows))
    np.testing.assert_allclose(got, slow_losses(params, windows), rtol=1e-4, atol=1e-4)


def test_it_has_the_size_of_nanogpts():
    """0.80 million, as nanoGPT prints: 12 width^2 a layer, and two embeddings."""
    model = language(65, context=64, layers=4, heads=4, width=128, seed=0)
    sizes = [leaf.size for leaf in jax.tree.leaves(model.params)]
    assert sum(sizes) == 4 * (12 * 128**2 + 2 * 128) + (65 + 64 + 1) * 128
    decayed = jax.tree.leaves(is_matrix(model.params))
    scales = sum(s for s, d in zip(sizes, decayed, strict=True) if not d)
    assert scales == (2 * 4 + 1) * 128


def test_it_starts_out_knowing_nothing():
    model = language(11, **SIZES)
    windows = jnp.asarray(np.random.default_rng(1).integers(0, 11, (20, CONTEXT + 1)))
    loss = float(jnp.mean(model.losses(model.params, windows)))
    assert abs(loss - np.log(11)) < 0.05


def test_what_it_writes_follows_its_own_predictions():
    """The buffer that slides is the plain loop over the last characters."""
    model = language(11, **SIZES)
    params, key, length = shaken(model.params), jax.random.key(5), 12
    first = jnp.array([3, 1, 4], jnp.int32)
    got = model.continue_text(params, first, length, key)
    text, losses = first.tolist(), jax.jit(model.losses)
    for one_key in jax.random.split(key, length):
        nexts = jnp.array([[*text[-CONTEXT:], c] for c in range(11)])
        text.append(int(jax.random.categorical(one_key, -losses(params, nexts)[:, -1])))
    assert got.tolist() == text[3:]


def test_heads_must_share_the_width():
    with pytest.raises(ValueError, match="--heads must divide --hidden; got 4 and 6"):
        language(11, **SIZES | {"heads": 4})


# --- the perceptron -------------------------------------------------------------------


def slow_logits(params, text):
    """Of one text of as many characters as the context, in float64."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    tree = params.to_pure_dict()
    joined = np.concatenate([tree["tokens"]["embedding"][c] for c in text])
    hidden = joined @ tree["hidden"]["kernel"] + tree["hidden"]["bias"]
    hidden = np.maximum(hidden, 0)
    return hidden @ tree["readout"]["kernel"] + tree["readout"]["bias"]


def test_the_perceptron_is_its_slow_form():
    model = perceptron(11, context=CONTEXT, width=6, seed=3)
    params = shaken(model.params)
    windows = np.random.default_rng(1).integers(0, 11, (5, CONTEXT + 1))
    logits = np.stack([slow_logits(params, window[:-1]) for window in windows])
    want = scipy.special.logsumexp(logits, 1) - logits[np.arange(5), windows[:, -1]]
    got = jax.jit(model.losses)(params, jnp.asarray(windows))
    np.testing.assert_allclose(got, want[:, None], rtol=1e-4, atol=1e-4)
    sizes = sum(leaf.size for leaf in jax.tree.leaves(model.params))
    assert sizes == 11 * 16 + (CONTEXT * 16 + 1) * 6 + (6 + 1) * 11


def test_the_perceptron_writes_behind_its_last_characters():
    """A beginning shorter than the context stands behind characters 0."""
    model = perceptron(11, context=CONTEXT, width=6, seed=3)
    params, key, length = shaken(model.params), jax.random.key(5), 12
    text = [0] * (CONTEXT - 3) + [3, 1, 4]
    got = model.continue_text(params, jnp.array(text[-3:], jnp.int32), length, key)
    for one_key in jax.random.split(key, length):
        logits = jnp.asarray(slow_logits(params, text[-CONTEXT:]), jnp.float32)
        text.append(int(jax.random.categorical(one_key, logits)))
    assert got.tolist() == text[CONTEXT:]


# --- curves and claims ----------------------------------------------------------------


TINY = shakespeare.PRESETS["tiny"]


@pytest.mark.parametrize("model", ["transformer", "perceptron"])
def test_contenders_train_and_write(model):
    """Each ends below its start; who sends bits has sent a 32nd of the bytes."""
    names = ("mean + Lion", "noisy Lion vote, b per leaf")
    config = dataclasses.replace(
        TINY,
        contenders=names,
        model=model,
        num_steps=20,
        chunk=10,
        num_seeds=1,
        batch_size=8,
        lion_rates=(0.01,),
        vote_rates=(0.01,),
    )
    result = shakespeare.run(config)
    assert set(result.curves) == set(names)
    for name, curve in result.curves.items():
        assert curve["held_out_loss"][-1] < curve["held_out_loss"][0] < np.log(60), name
        assert len(result.extra["written after"][name]) == config.sample
    sent = [result.curves[name]["megabytes"][-1] for name in names]
    assert sent[0] == pytest.approx(20 * 4 * result.extra["parameters"] / 1e6)
    assert sent[0] == pytest.approx(32 * sent[1])


GRADS = np.random.default_rng(0).normal(size=(8, 30)).astype(np.float32)


@pytest.mark.parametrize("name", CONTENDERS)
def test_every_contender_steps_against_the_gradient_at_its_rate(name):
    """One worker pulls everywhere, far harder than the noise: all go along."""
    grads, params = jnp.sign(jnp.asarray(GRADS[:1])) + jnp.zeros((8, 1)), jnp.zeros(30)
    built = CONTENDERS[name].build(shakespeare.Config(), lambda step: 0.1, 1e-3, 0)
    updates, _ = built.update(grads, built.init(params), params)
    np.testing.assert_allclose(updates, -0.1 * grads[0], rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "aggregate"),
    [
        ("noisy signs", lambda grads: np.sign(grads).mean(axis=0)),
        ("a noisy vote", lambda grads: np.sign(np.sign(grads).mean(axis=0))),
        ("the noisy mean", lambda grads: grads.mean(axis=0)),
    ],
)
def test_lion_after_an_aggregator_is_lion_on_what_it_says(name, aggregate):
    """Beside a loop in NumPy, with noise far below every entry; no worker has state."""
    config = shakespeare.Config(lion_b2=0.8, decay=0.25)
    contender = CONTENDERS[f"Lion after {name}, K = 50"]
    built = contender.build(config, lambda step: 0.1, 1e-6, 0)
    params = jnp.linspace(-1, 1, 30)
    state = built.init(params)
    assert max(leaf.size for leaf in jax.tree.leaves(state)) <= 30
    x, momentum = np.asarray(params, np.float64), np.zeros(30)
    for step in range(4):
        grads = np.roll(GRADS, step, axis=1)
        updates, state = built.update(jnp.asarray(grads), state, params)
        params = params + updates
        said = aggregate(grads)
        x -= 0.1 * (np.sign(0.9 * momentum + 0.1 * said) + 0.25 * x)
        momentum = 0.8 * momentum + 0.2 * said
    np.testing.assert_allclose(params, x, atol=1e-5)


def test_the_noise_of_the_mean_does_not_cancel():
    """Lion's first sign is that of the mean gradient plus that of eight noises."""
    grads, params = jnp.ones((8, 4000)), jnp.zeros(4000)
    contender = CONTENDERS["Lion after the noisy mean, K = 50"]
    built = contender.build(shakespeare.Config(decay=0.0), lambda step: 1.0, 4.0, 0)
    updates, _ = built.update(grads, built.init(params), params)
    # The noise has the scale 4 of squares of 1: its mean is nearly normal, sd 4 / 8^.5.
    share = 0.2398  # Phi(-8^.5 / 4)
    error = 5 * np.sqrt(share / 4000)
    assert abs(float(jnp.mean(updates == 1.0)) - share) < error


def test_the_noise_of_contenders_has_the_scale_that_is_tuned():
    """Systematic uniform noise of b over 10 on entries 1 of 8 workers: half vote -1."""
    grads, params = jnp.ones((8, 4000)), jnp.zeros(4000)
    for name, scale in (("one b", 10.0), ("b per leaf", 100.0)):
        contender = CONTENDERS[f"noisy Lion vote, {name}"]
        built = contender.build(shakespeare.Config(), lambda step: 1.0, scale, 0)
        updates, _ = built.update(grads, built.init(params), params)
        # The interpolation is (1 - b1) g = .1: b is 10, and 100 times .1. Eight samples
        # lie evenly spaced over 2 sqrt(3) b; the tally is 0 but for a share of 8 * .1
        # over that width, where one more is above -.1: then it is 2.
        share = 8 * 0.1 / (2 * np.sqrt(3) * 10)
        error = 5 * np.sqrt(share / 4000)
        assert abs(float(jnp.mean(updates == -1.0)) - share) < error
        assert float(jnp.mean(updates == 1.0)) == 0


def test_the_best_of_the_tuning_is_trained():
    """A rate of 0 learns nothing, so the other is chosen."""
    config = dataclasses.replace(
        TINY, contenders=("mean + AdamW",), adam_rates=(0.0, 0.01), tune_steps=5
    )
    assert shakespeare.run(config).extra["chosen"] == {"mean + AdamW": "rate 0.01"}


def reached(**losses):
    return {
        name.replace("_", " ").replace("  ", ", ").replace("plus", "+"): claims.Reached(
            "", {}, loss + np.array([-0.001, 0.0, 0.001]), ""
        )
        for name, loss in losses.items()
    }


@pytest.mark.parametrize(
    ("noisy", "near", "ahead"),
    [(1.9, True, True), (2.2, False, True), (2.6, False, False)],
)
def test_noise_has_to_be_near_the_mean_and_ahead_of_no_noise(noisy, near, ahead):
    found = reached(
        mean_plus_Lion=1.87,
        Distributed_Lion__majority=2.5,
        noisy_Lion_vote__one_b=noisy,
    )
    stated = claims.compare("noisy Lion vote, one b", found, judged=True)
    assert [claim.holds for claim in stated] == [near, ahead]
    stated = claims.compare("noisy Lion vote, one b", found, judged=False)
    assert [claim.holds for claim in stated] == [None, None]


def test_two_seeds_have_to_be_ahead_by_more_than_chance():
    """By three standard errors, where t of one degree of freedom asks for 12.7."""
    ours = np.array([1.9, 1.9])
    for ahead, holds in (([0.1, 0.2], False), ([0.1, 0.101], True), ([0.1], None)):
        plain = ours[: len(ahead)] + ahead
        found = {
            "noisy": claims.Reached("", {}, ours[: len(ahead)], ""),
            "Distributed Lion, majority": claims.Reached("", {}, plain, ""),
        }
        (claim,) = claims.compare("noisy", found, judged=True)
        assert claim.holds is holds
        assert claim.statement.startswith("noisy is ahead of Distributed Lion (")


def test_more_workers_than_an_invented_play_has_names(tmp_path, monkeypatch):
    play = texts.invented_play(42, 100)
    assert len({line for line in play.split("\n") if line.endswith(":")}) == 42
    (tmp_path / "play.txt").write_text(play)
    monkeypatch.setattr(texts, "invented_play", pytest.fail)
    monkeypatch.setattr(
        shakespeare.trial, "_build_model", lambda *size: types.SimpleNamespace(params=0)
    )
    many = dataclasses.replace(
        TINY, text=tmp_path / "play.txt", num_workers=21, model="perceptron"
    )
    assert len(shakespeare.build_trial(many).corpus.split.sizes) == 21


def test_a_folder_that_is_nowhere_is_named_whatever_the_workers(tmp_path):
    for number in (1, 2):
        config = dataclasses.replace(
            TINY, texts=tmp_path / "nowhere", num_workers=number
        )
        with pytest.raises(ValueError, match=r"--texts takes a folder .* has 0"):
            shakespeare.build_trial(config)


def test_text_and_texts_exclude_each_other(tmp_path):
    config = dataclasses.replace(TINY, text=tmp_path / "a.txt", texts=tmp_path)
    with pytest.raises(ValueError, match="--text or --texts, not both"):
        shakespeare.run(config)
    config = dataclasses.replace(TINY, texts=tmp_path, split="speakers")
    with pytest.raises(ValueError, match="--texts or --split speakers, not both"):
        shakespeare.run(config)
    with pytest.raises(ValueError, match="--contenders takes some of"):
        shakespeare.run(dataclasses.replace(TINY, contenders=("mean",)))


def test_results_say_which_text_was_read_and_an_invented_one_is_not_judged(tmp_path):
    for name in ("fi", "de"):
        (tmp_path / f"{name}.txt").write_text(texts.invented_play(2, 400))
    few = dataclasses.replace(
        TINY, num_workers=2, num_seeds=1, contenders=("Distributed Lion, majority",)
    )
    folder = dataclasses.replace(few, texts=tmp_path)
    assert shakespeare.run(folder).data == f"{tmp_path.name}: de, fi"
    for name in ("nl", "pl"):
        section = tmp_path / "man" / name / "man1"
        section.mkdir(parents=True)
        words = texts.invented_play(2, 400).replace("\n", "\n.br\n")
        (section / "a.1").write_text(f".TH A 1\n{words}")
    manual = dataclasses.replace(few, texts=tmp_path / "man")
    assert shakespeare.run(manual).data == "manual pages: nl, pl"
    invented = shakespeare.run(few)
    assert invented.data == "an invented play"
    long = dataclasses.replace(few, num_steps=2000, hidden=128)
    reached = {
        name: claims.Reached("", {}, np.ones(2), "")
        for name in ("noisy Lion vote, b per coordinate, K = 50", "mean + Lion")
    }
    for text, holds in ((None, None), (tmp_path / "de.txt", True)):
        trial = types.SimpleNamespace(config=dataclasses.replace(long, text=text))
        assert claims.judge(trial, reached)[-1].holds is holds

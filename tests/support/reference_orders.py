"""The swap-or-not shuffle in Python integers, one sample and one round at a time."""

import jax
import numpy as np

WORD = 2**32


def hashed(word):
    """Wellons' lowbias32."""
    word = (word ^ (word >> 16)) * 0x7FEB352D % WORD
    word = (word ^ (word >> 15)) * 0x846CA68B % WORD
    return word ^ (word >> 16)


def swaps(words, n, rounds):
    """Yields each round as its offset K and its fair bit by pair."""
    low, high = (int(word) for word in words)
    for i in rounds:
        word = hashed((low + i * 0x9E3779B9) % WORD)
        offset = hashed((word + high) % WORD) * n // WORD

        def bit(pair, word=word):
            return hashed(((pair + high) * 0x9E3779B9 % WORD) ^ word) >> 31

        yield offset, bit


def sample_at(place, words, n, rounds=range(32)):
    """Hoang, Morris and Rogaway 2012, Figure 1."""
    for offset, bit in swaps(words, n, rounds):
        partner = (offset - place) % n
        if bit(max(place, partner)):
            place = partner
    return place


def place_of(sample, words, n):
    """The inverse: each round undoes itself."""
    return sample_at(sample, words, n, range(31, -1, -1))


def key_words(key, *numbers):
    """The words of ``fold_in(fold_in(key, numbers[0]), ...)``."""
    for number in numbers:
        key = jax.random.fold_in(key, np.uint32(number))
    return np.asarray(jax.random.key_data(key))

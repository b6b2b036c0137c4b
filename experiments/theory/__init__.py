"""The theory of the noisy median and vote, in numbers."""

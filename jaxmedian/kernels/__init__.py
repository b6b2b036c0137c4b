"""Kernels: arithmetic on the rows ``[M, d]`` of M workers, one leaf at a time.

No trees, no optax, no other devices: an aggregator brings the rows here and carries the
result back. By level:

    rows                     sums of rows, and the dtype in which all this is computed
    ballots, packing         votes and tallies, and votes as bits
    networks, bisection,     medians: integers that sort like floats, pruned networks,
      tiles, selection         bisection, and which of them when
    trimming, weighting      means of the middle, and weighted medians
    shares                   how all of these move with the rows they select
    distances, combinations  Gram matrices without a temporary of M^2 d, and subsets
"""

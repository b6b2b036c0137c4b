"""Kernels: arithmetic on the rows ``[M, d]`` of M workers, one leaf at a time.

No trees, no optax, no other devices: an aggregator brings the rows here and carries the
result back. By level:

    random_bits, leaf_noise        words that fuse, and the noise of one leaf
    row_sums, averaging            sums and means of rows
    ballots, voting, packing       votes, tallies, and votes as bits
    order_keys, networks,          medians: integers that sort like floats, pruned
      bisection, tiles, selection    networks, bisection, and which of them when
    trimming, weighting            means of the middle, and weighted medians
    distances                      Gram matrices without a temporary of M^2 d
    precision                      the dtype in which all this is computed
"""

"""Worker transforms and aggregators: optax transformations of ``[M, ...]`` updates.

    vote, median           the paper's rules
    means                  the mean they stand in for, trimmed, of signs, by coordinate
    centers                geometric median and centered clipping, of whole gradients
    neighbors, subsets     Krum, multi-Krum, Bulyan, minimum-diameter mean
    perturbation           noise before any rule
    lifting                per-worker state: `per_worker`
    memory                 momentum, EF21 and drift correction per worker
    mixing, clipping       bucketing, nearest-neighbour mixing, bounds on norms
    arrays                 the same rules for plain arrays, without optax

Every rule is built by `build` (coordinate by coordinate) or `whole_gradients` (weighted
means of whole gradients); `draws` deals the random words of one step to its leaves.
"""

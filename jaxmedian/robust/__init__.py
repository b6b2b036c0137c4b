"""Rivals of votes and medians: what other work does about hostile workers.

    means       trimmed mean and mean around the median, coordinate by coordinate
    centers     geometric median and centered clipping, of whole gradients
    neighbors   Krum and multi-Krum, by distances between whole gradients
    subsets     Bulyan and the mean of the subset of least diameter
    mixing      bucketing and nearest-neighbour mixing, before any rule
    clipping    bounds on norms, given or taken from the gradients, before any rule

`mixtures` carries weighted means of whole gradients to trees; `minority` checks f.
"""

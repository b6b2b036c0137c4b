"""Rivals of votes and medians: what other work does about hostile workers.

    means       trimmed mean and mean around the median, coordinate by coordinate
    centers     geometric median and centered clipping, of whole gradients
    neighbors   Krum and multi-Krum, by distances between whole gradients
    mixing      bucketing, nearest-neighbour mixing and clipping, before any rule

`mixtures` carries weighted means of whole gradients to trees; `minority` checks f.
"""

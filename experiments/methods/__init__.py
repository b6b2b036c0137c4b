"""Heterogeneous data, and other methods beside ours."""

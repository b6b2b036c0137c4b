"""Data sets that experiments train on."""

"""Networks, aggregation rules, and the trainer of experiments."""

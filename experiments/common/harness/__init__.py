"""The command line, results, claims and figures of an experiment."""

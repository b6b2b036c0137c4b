"""The figures and the rates of the paper."""

"""One file a claim: ``python -m experiments`` lists and runs them."""

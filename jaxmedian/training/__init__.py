"""Training loops: from a loss and the data of many workers to trained parameters.

step           one jitted step: `make_step`
run            many steps, measured, interrupted, continued: `run`, `run_pure`
chunks         the compiled part of a run: steps, then a measurement
resume         its checkpoints, and which run (`identity`) they are of
interrupts     Ctrl-C, heeded at the edges of chunks
reporting      what the host shows there: `on_chunk`, a progress bar
batches        what each worker trains on in a step, and which workers take part
remembering    what was built for an optimizer, so that equal settings compile once
"""

"""Training loops: from a loss and the data of many workers to trained parameters.

step           one jitted step: `make_step`
run, resume    many steps, measured, interrupted, continued: `run`, `run_pure`
batches        what each worker trains on in a step, and which workers take part
local_steps    several optimizer steps per worker between two aggregations
"""

"""The worker axis: who the workers are, their gradients, and what crosses a mesh.

population     checks of stacked updates, masks and weights; who is present
gradients      one gradient per worker, vmapped or in chunks
local_steps    several optimizer steps per worker between two aggregations
blocks         loops over some workers at a time, alike for any number of them
stream         gradients of many workers that are never all in memory
collectives    everything that crosses a mesh axis
checks         checks of arguments
"""

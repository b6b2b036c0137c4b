"""Arrays that lie as XLA wants them, whose memory JAX shares on CPUs."""

import numpy as np


def aligned_copy(array):
    """Copies an array to an address that is a multiple of 64 bytes."""
    memory = np.zeros(array.nbytes + 64, np.uint8)
    first = -memory.ctypes.data % 64
    own = memory[first : first + array.nbytes].view(array.dtype).reshape(array.shape)
    own[...] = array
    return own

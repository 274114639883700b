"""Weights without a weight file: every tensor is a fixed function of its name and shape.

fill(name, shape) gives the values that the golden outputs were computed with.  t is uniform noise of unit
variance, drawn in C order from the counter-based generator Philox keyed by crc32(name):
  *.num_batches_tracked                            0
  *.running_var                                    1 + 0.2 t
  *.running_mean                                   0.1 t
  1-d 'weight' (norms) and 'gamma' (layer scale)   1 + 0.1 t
  scalars and any other 1-d tensor                 0.02 t
  2-d and more                                     t / sqrt(fan_in), fan_in = size / shape[0]
"""

import math
import zlib

import numpy as np


def fill(name: str, shape: tuple[int, ...]) -> np.ndarray:
    size = math.prod(shape)
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    raw = np.random.Philox(key=zlib.crc32(name.encode())).random_raw(size)
    t = (raw.astype(np.float64) / 2.0**63 - 1.0) * math.sqrt(3)
    if leaf == "running_var":
        t = 1 + 0.2 * t
    elif leaf == "running_mean":
        t = 0.1 * t
    elif len(shape) >= 2:
        t = t / math.sqrt(size / shape[0])
    elif len(shape) == 1 and leaf in ("weight", "gamma"):
        t = 1 + 0.1 * t
    else:
        t = 0.02 * t
    return t.reshape(shape).astype(np.float32)

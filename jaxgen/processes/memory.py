"""Memory that was freed stays with the process of a command, on Linux on a CPU.

XLA asks for the memory of a program anew whenever the program runs. glibc's `malloc` gives so large a piece back to the system when it is
freed, and the system clears every page of it when it is touched again: in a training step of a transformer a third of the time
(experiments/results/layer_speed.md). Here the pieces come from one heap that does not shrink, so that the next step finds its pages in
place. The price: programs of different sizes, one after the other, may hold more memory than the largest of them needs.
"""

import ctypes
import importlib.util
import os
import sys

# Options of glibc's mallopt (malloc.h) and their values.
ARENA_MAX, MMAP_MAX, TOP_PAD, TRIM_THRESHOLD = -8, -4, -2, -1
KEEP = {ARENA_MAX: 1, MMAP_MAX: 0, TRIM_THRESHOLD: 2**31 - 1, TOP_PAD: 2**26}
"""One heap for all threads; no piece outside it; freed memory at its end is kept up to 2 GB; it grows by 64 MB at a time."""


def keep_freed() -> None:
    """From now on the process keeps what it frees. To be called before jax starts threads.

    Does nothing where jax has an accelerator, whose programs do not use this memory, where the environment has settings of malloc of its
    own (MALLOC_..., GLIBC_TUNABLES), and on systems without glibc.
    """
    on_cpu = os.environ.get("JAX_PLATFORMS") == "cpu" or not any(map(importlib.util.find_spec, ("jax_plugins", "libtpu")))
    chosen = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    if sys.platform != "linux" or chosen or not on_cpu:
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library
        return
    for option, value in KEEP.items():
        mallopt(option, value)

"""The experiments, one script each: python -m experiments.NAME. Ctrl-C ends such a process at once, while it imports jax too."""

import sys

from jaxgen.processes import interruption, memory

if sys.argv[:1] == ["-m"]:  # so it is while Python looks for the script that it was started with
    interruption.begin()
    memory.keep_freed()

"""How the tests compile: fast, on one device or on several virtual ones; and how rarely they collect garbage."""

import functools
import gc
import os
from importlib.metadata import version

KNOWN = tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11)
"""Whether jaxlib has XLA's older code for loops too; a version that does not know one of the words below says so and ends."""
# Without XLA's newer code for loops on a CPU, and without parts of a program compiled side by side, compiling takes a quarter of the time.
FAST_TO_COMPILE = "--xla_cpu_use_fusion_emitters=false " * KNOWN + "--xla_cpu_parallel_codegen_split_count=1"
AS_USERS_COMPILE = ({"xla_cpu_use_fusion_emitters": True} if KNOWN else {}) | {"xla_cpu_parallel_codegen_split_count": 32}
"""Options of one program, `jax.jit(f, compiler_options=AS_USERS_COMPILE)`, that has what the words above leave out."""

KEEP_FROM = 0.1
"""Seconds from which on a program that the tests compile in their own process is written to the compilation cache. Most of them are small
and needed once: to compress and write them took longer than was saved. Processes that tests start keep all: they compile the same again."""


def share_context() -> None:
    """One MLIR context for all programs, where jax makes a new one with all its dialects, 8 ms, for every program.

    A part of jax that is not public; a version that does not have it goes on without.
    """
    from jax._src.interpreters import mlir

    if hasattr(mlir, "make_ir_context"):
        mlir.make_ir_context = functools.cache(mlir.make_ir_context)


LARGE = 30
"""Operations from which on a program of the tests' own process, or one with a loop, is looked for in the compilation cache."""


def look_for_large_programs_only() -> None:
    """Programs of few operations are compiled at once: no key of the compilation cache is made for them, and no file is looked for.

    Nine in ten programs of the tests are so small, and `KEEP_FROM` keeps none of them; a key takes a tenth of the time to compile one.
    A part of jax that is not public; a version that does not have it goes on without.
    """
    from jax._src import compiler

    if not hasattr(compiler, "_get_cache_key"):
        return
    make_key = compiler._get_cache_key

    def is_large(computation) -> bool:
        blocks = (block for function in computation.body.operations for region in function.regions for block in region.blocks)
        names = [operation.name for block in blocks for operation in block.operations]
        return len(names) >= LARGE or "stablehlo.while" in names

    def key(*args, computation, **options):
        return make_key(*args, computation=computation, **options) if is_large(computation) else None

    compiler._get_cache_key = key


def say_little_of_tracers() -> None:
    """`tracer.sharding`, which does not exist and which nnx asks for whenever a variable is set, fails at once.

    jax looks through the whole program for the words of that error, which nobody reads: half of the time in which a model is traced.
    """
    import jax

    def absent(tracer):
        raise AttributeError("a value that is traced has no sharding")

    jax.core.Tracer.sharding = property(absent)


def virtual_devices(n: int) -> dict[str, str]:
    """The environment variable of a process that has n devices on the CPU."""
    return {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={n}"}


def collect_rarely() -> None:
    """Garbage is collected rarely, and not among what was imported: with the thresholds of Python it takes a tenth of the time and more.

    To look through all objects takes one or two seconds once a process holds many programs.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 10, 60)


def in_a_process() -> None:
    """What makes the tests' own process fast and has no settings, for a process that a test starts."""
    collect_rarely()
    share_context()
    say_little_of_tracers()


IN_A_PROCESS = f"""
import sys
sys.path.append({os.path.dirname(os.path.abspath(__file__))!r})
import compiling
sys.path.pop()
compiling.in_a_process()
"""
"""`in_a_process` for a program that a test starts, once it has imported what it needs."""

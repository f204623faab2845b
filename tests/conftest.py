"""Strict mode for every test: silent broadcasting, silent dtype promotion, warnings and wrong shapes are errors.

The switches are environment variables, so that the processes that tests start (kill tests, two-process tests) inherit them.
Warnings become errors in pyproject.toml.
"""

import gc
import os
import signal
from pathlib import Path

from compiling import FAST_TO_COMPILE, KEEP_FROM, collect_rarely, look_for_large_programs_only, say_little_of_tracers, share_context

ROOT = Path(__file__).resolve().parent.parent

STRICT = {
    "JAX_NUMPY_RANK_PROMOTION": "raise",
    "JAX_NUMPY_DTYPE_PROMOTION": "strict",
}
DEFAULTS = {
    "JAX_PLATFORMS": "cpu",
    # The programs of the tests are tiny and run once: without XLA's optimizer the suite takes half the time. 0 tests what users run.
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    # Compiling is most of the time of the suite; at the default threshold of one second almost nothing would be kept.
    "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    # The lines of Python that an operation comes from are not written into programs: nobody reads them, and writing them takes time.
    "JAX_TRACEBACK_IN_LOCATIONS_LIMIT": "0",
    # numpy's matrices here have tens of rows; beside other processes, threads that wait for each other take ten times what they compute.
    "OPENBLAS_NUM_THREADS": "1",
}
gc.disable()  # until all tests are collected
os.environ.update(STRICT)
for name, value in DEFAULTS.items():
    os.environ.setdefault(name, value)
if os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1" and FAST_TO_COMPILE not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FAST_TO_COMPILE}".strip()

import jax  # noqa: E402  (after the environment)
import jaxtyping  # noqa: E402
import pytest  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402
from threadpoolctl import threadpool_limits  # noqa: E402

jax.config.update("jax_persistent_cache_min_compile_time_secs", KEEP_FROM)
share_context()
look_for_large_programs_only()
say_little_of_tracers()

# Checks the shapes and types of every annotated function of the package while the tests run; it must come before the first import.
# An int serves as a float, as in PEP 484.
install_import_hook("jaxgen", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")


def pytest_configure(config: pytest.Config) -> None:
    """Strict mode must be on even if a plugin imported jax before this file ran."""
    jax.config.update("jax_numpy_rank_promotion", STRICT["JAX_NUMPY_RANK_PROMOTION"])
    jax.config.update("jax_numpy_dtype_promotion", STRICT["JAX_NUMPY_DTYPE_PROMOTION"])
    threadpool_limits(1, user_api="blas")  # as the variable above says, for a numpy that a plugin has imported before it was set


MODELS = {path.stem for path in (ROOT / "jaxgen" / "models").glob("*.py")}


def group(nodeid: str) -> str:
    """The tests that share a worker: those of a file, which compile the same programs; in the table of models those of one model."""
    file, _, name = nodeid.partition("::")
    words = name.partition("[")[2].rstrip("]").split("-")
    return " ".join([file, *(word for word in words if word in MODELS and file.endswith("test_models.py"))])


# Few tests that take long, most of them because they start processes: begun last, one worker would wait for the other.
FIRST = ("test_several_devices.py", "test_two_processes.py", "test_interruption.py", "test_experiments.py", "test_resume.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files of FIRST come first, the others stay in their order."""
    items.sort(key=lambda item: FIRST.index(item.path.name) if item.path.name in FIRST else len(FIRST))


def pytest_collection_finish() -> None:
    collect_rarely()
    gc.enable()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log):
    """Deals whole groups to the workers. (`--dist loadgroup` would need marks that this version of pytest does not pass on to xdist.)"""
    from xdist.scheduler import LoadScopeScheduling

    config.option.loadscopereorder = False  # groups are dealt in the order of the tests, not those with the most tests first

    class ByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group(nodeid)

    return ByGroup(config, log)


MOST_MAPS = 30_000


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Forgets compiled programs before there are too many: each is several memory maps, and with 65,530 of them Linux ends a process."""
    maps = Path("/proc/self/maps")
    if nextitem is None or group(item.nodeid) == group(nextitem.nodeid) or not maps.exists():
        return
    if maps.read_bytes().count(b"\n") > MOST_MAPS:
        jax.clear_caches()


@pytest.fixture
def real_data():
    """`real_data("mnist")` is the folder $JAXGEN_DATA/mnist; the test is skipped, with the reason, where it is absent."""

    def folder(name: str) -> Path:
        base = os.environ.get("JAXGEN_DATA")
        if not base:
            pytest.skip(f"real data {name!r}: JAXGEN_DATA is not set")
        path = Path(base) / name
        if not path.is_dir():
            pytest.skip(f"real data {name!r}: {path} is not there")
        return path

    return folder


@pytest.fixture
def no_curves(monkeypatch):
    """Runs draw no curve of their losses: it takes tenths of a second, and few tests look at one."""
    from jaxgen.runs import figures

    monkeypatch.setattr(figures, "curve", lambda *_: b"")


@pytest.fixture
def unchecked(monkeypatch):
    """The package as its users have it: annotations are not checked, so that its own errors are seen."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture(autouse=True)
def signals_are_of_the_test_process():
    """A test that calls a script as the command line does leaves no thread behind that would end this process at the next Ctrl-C."""
    from jaxgen.processes import interruption

    yield
    if interruption._watched:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        interruption._watched = False

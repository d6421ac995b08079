"""Shared fixtures. The real clips are not part of the project (non-commercial licence)."""

import gc
import itertools
import os
import shutil
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import jax
import processes
import pytest

# LLVM's optimizations and XLA's fusion emitters take longer than small tests run: they are left
# out. With JAX_DISABLE_MOST_OPTIMIZATIONS=0 every test computes as users do.
QUICK = os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1") != "0"
if QUICK:
    os.environ.setdefault("NUMBA_DISABLE_JIT", "1")  # UMAP takes a minute to compile
    quick = [processes.users_flags(), processes.ONE_PART]
    if version("jaxlib") < "0.12":  # newer ones have no other emitters
        quick.append(processes.OTHER_EMITTERS)
    os.environ["XLA_FLAGS"] = " ".join(quick).strip()
OPTIMIZED = "test_beats", "test_fbank", "test_knn"  # by LLVM
jax.config.update("jax_num_cpu_devices", 2)  # every test runs on two devices
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")  # parity on accelerators too

gc.set_threshold(100_000, 20, 50)  # traced programs live on: to look through them took 5 % longer

# Equal programs are compiled once in all workers; a worker inherits the environment.
COMPILED = "JAX_COMPILATION_CACHE_DIR"
KEPT = 2  # files whose programs a worker keeps: those of all would take gigabytes
FILES = itertools.count()
DRAWING = ("test_figures", "test_main")
LONGEST = ("test_devices", "test_kill", "test_parity", "test_spectral_system", "test_two_stage")


def pytest_configure(config):
    if COMPILED not in os.environ:
        os.environ[COMPILED] = folder = tempfile.mkdtemp(prefix="asdjax-compiled-")
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    jax.config.update("jax_compilation_cache_dir", os.environ[COMPILED])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def pytest_collection_modifyitems(items):
    """Put the longest files first, so that no worker ends long after the other."""
    items.sort(key=lambda item: item.path.stem not in LONGEST)


@pytest.fixture(scope="module", autouse=True)
def _undrawn(request):
    """Drawing takes two thirds of a small run: only tests of figures do it."""
    if request.path.stem in DRAWING:
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        agg = "matplotlib.backends.backend_agg.FigureCanvasAgg.print_png"
        patch.setattr(agg, lambda _, path, **__: path.touch())
        yield


@pytest.fixture(scope="module", autouse=True)
def _compiled(request):
    """Set how the programs of a file are compiled; forget them before they fill the memory."""
    quick = QUICK and request.path.stem not in OPTIMIZED
    jax.config.update("jax_disable_most_optimizations", quick)
    if next(FILES) % KEPT == 0 or not quick:
        jax.clear_caches()
    yield
    if not quick:
        jax.clear_caches()


@pytest.fixture
def call(monkeypatch, capsys):
    """Return a function that gives exit code, output and messages of `asdjax WORDS`."""

    from asdjax import __main__ as command_line

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["asdjax", *map(str, words)])
        try:
            command_line.main()
            code = 0
        except SystemExit as exit:
            code = exit.code
        shown = capsys.readouterr()
        if isinstance(code, str):  # Python prints it to standard error and exits with 1
            return 1, shown.out, shown.err + code
        return code or 0, shown.out, shown.err

    return call


REAL_MACHINES = Path(__file__).parents[2] / "shared" / "data" / "real_machines"


@pytest.fixture(scope="session")
def real_machines() -> Path:
    if not REAL_MACHINES.is_dir():
        pytest.skip(f"no real recordings at {REAL_MACHINES} (they may not be redistributed)")
    return REAL_MACHINES


@pytest.fixture(scope="session")
def golden() -> Path:
    """Small reference outputs; `tests/golden/README.md` says where each came from."""
    return Path(__file__).parent / "golden"

"""Calls of the command line in processes of their own, which have imported what it needs.

They draw no figures, which would take longer than all the rest of a small run.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

OTHER_EMITTERS = "--xla_cpu_use_fusion_emitters=false"
ONE_PART = "--xla_cpu_parallel_codegen_split_count=1"  # to split a program took a sixth longer
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["asdjax.__main__", "asdjax.train.loop", "asdjax.scoring.knn"])


def users_flags() -> str:
    """Return XLA_FLAGS without what the tests add."""
    flags = os.environ.get("XLA_FLAGS", "").split()
    return " ".join(flag for flag in flags if flag not in (OTHER_EMITTERS, ONE_PART))


def call(
    work: Callable,
    log: Path,
    *given,
    cache: Path,
    devices: int = 1,
    optimized: bool = False,
    **environment,
) -> BaseProcess:
    """Start `work(*given)`, a function of a module, in a process.

    Args:
      log: is continued by what it prints.
      cache: of compiled programs.
      optimized: by LLVM; otherwise it takes half the time to compile, the same mathematics.
      environment: more variables.
    """
    settings = {
        "jax_compilation_cache_dir": str(cache),
        "jax_disable_most_optimizations": not optimized,
        "jax_num_cpu_devices": devices,
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_platforms": "cpu",
    }
    environment = {name: str(value) for name, value in environment.items()}
    ours = os.environ.get("XLA_FLAGS", "")
    environment.setdefault("XLA_FLAGS", users_flags() if optimized else ours)
    given = work, log, given, settings, environment
    process = SERVER.Process(target=_run, args=given, daemon=True)  # ends with the tests
    process.start()
    return process


def _run(work: Callable, log: Path, given: tuple, settings: dict, environment: dict) -> None:
    import jax

    from asdjax.report import figures

    figures.write = lambda *_: None
    with log.open("a") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    os.environ.update(environment)
    for name, value in settings.items():
        jax.config.update(name, value)
    try:
        work(*given)
    finally:
        atexit._run_exitfuncs()  # which multiprocessing leaves out: processes wait for each other


def address(port: int, number: int) -> dict:
    where = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}"}
    return where | {"JAX_NUM_PROCESSES": 2, "JAX_PROCESS_ID": number}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]

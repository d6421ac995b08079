"""Compiled programs are kept in the user's cache folder: the next call need not compile again."""

from __future__ import annotations

import hashlib
import os
import platform
from importlib.metadata import version

from asdjax.arithmetic import processor_flags
from asdjax.files import cache_folder

FOLDER = "compiled"


def keep_compiled() -> str:
    """Switch on JAX's persistent compilation cache, unless the user has set it up otherwise.

    Programs lie in a folder of `files.cache_folder()` for this processor and version of jaxlib: a
    home folder may be shared by machines of which one cannot run the other's instructions. What
    JAX cannot read there, it compiles again, with a warning. JAX_COMPILATION_CACHE_DIR names
    another folder, JAX_ENABLE_COMPILATION_CACHE=0 switches it off.

    Returns:
      Why nothing is kept, "" otherwise.
    """
    import jax

    if jax.config.jax_compilation_cache_dir or not jax.config.jax_enable_compilation_cache:
        return ""
    folder = cache_folder() / FOLDER / _processor()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        usable, reason = os.access(folder, os.W_OK | os.X_OK), "no permission to write"
    except OSError as error:
        usable, reason = False, error.strerror or str(error)
    if not usable:
        return (
            f"compiled programs are not kept for later calls, {folder}: {reason}; set ASDJAX_HOME "
            "to a folder that can be written, or leave them out with --no-cache"
        )
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    return ""


def _processor() -> str:
    """Return a name for processors of the same instructions, under this jaxlib."""
    own = platform.machine(), platform.processor(), *sorted(processor_flags())
    described = "\n".join(own).encode()
    return f"jaxlib-{version('jaxlib')}-{hashlib.sha256(described).hexdigest()[:12]}"

"""Compiled programs are kept for the next call, and nothing there can end it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from asdjax import __main__ as command_line
from asdjax.compiled import keep_compiled

HIT = "/jax/compilation_cache/cache_hits"


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Return the user's cache folder; JAX keeps nothing yet."""
    names = "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs"
    before = {name: getattr(jax.config, name) for name in names}
    monkeypatch.setenv("ASDJAX_HOME", str(tmp_path / "home"))
    jax.config.update(names[0], None)
    compilation_cache.reset_cache()
    yield tmp_path / "home"
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def compute() -> np.ndarray:
    return np.asarray(jax.jit(lambda x: jnp.sin(x) @ x)(np.eye(3, dtype=np.float32)))


def entries(home) -> list:
    return [path for path in home.rglob("*") if path.is_file()]


def test_a_program_is_compiled_once(home):
    events = []
    jax.monitoring.register_event_listener(lambda event, **_: events.append(event))
    assert keep_compiled() == ""
    first = compute()
    kept = entries(home)
    assert kept
    assert HIT not in events
    jax.clear_caches()
    np.testing.assert_array_equal(compute(), first)
    assert entries(home) == kept
    assert HIT in events


@pytest.mark.parametrize("damage", [lambda content: b"", lambda content: content[:-9]])
def test_a_broken_entry_is_compiled_again_with_a_warning(home, damage):
    keep_compiled()
    first = compute()
    for path in entries(home):
        path.write_bytes(damage(path.read_bytes()))
    jax.clear_caches()
    with pytest.warns(UserWarning, match="persistent compilation cache"):
        second = compute()
    np.testing.assert_array_equal(second, first)


def test_a_folder_that_cannot_be_made_is_told(home):
    home.write_text("a file")
    reason = keep_compiled()
    assert str(home) in reason
    assert "--no-cache" in reason
    assert jax.config.jax_compilation_cache_dir is None
    compute()


@pytest.mark.parametrize("words", [["--no-cache"], []])
def test_the_command_line_keeps_programs_unless_told_not_to(home, monkeypatch, words):
    called = []
    monkeypatch.setitem(command_line.COMMANDS, "quickstart", lambda: called.append(words))
    monkeypatch.setattr(command_line, "COMPILE", (command_line.COMMANDS["quickstart"],))
    command_line.dispatch(["quickstart", *words])
    assert called == [words]
    assert (jax.config.jax_compilation_cache_dir is None) == bool(words)


def test_what_the_user_set_up_stays(home, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "own"))
    assert keep_compiled() == ""
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "own")
    assert not home.exists()

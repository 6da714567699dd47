"""The file that a search is kept in: an optuna study in a journal, and what it was begun with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from esdllm.errors import ConfigError, UnavailableError, installing

if TYPE_CHECKING:
    import optuna

__all__ = ["agree", "alone", "digest", "open_study", "sampler"]


def digest(value: Any) -> str:
    """Return a short text that tells values apart that JSON can hold."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def agree(study: optuna.Study, key: str, asked: Mapping[str, Any], file: Path | None) -> None:
    """Note under a key what is asked of a study.

    Raises:
        ConfigError: it was asked something else.
    """
    asked, kept = json.loads(json.dumps(asked)), study.user_attrs.get(key)
    if kept is None:
        study.set_user_attr(key, asked)
    elif kept != asked:
        differs = ", ".join(one for one in asked if kept.get(one) != asked[one])
        raise ConfigError(f"{file} holds a search that differs in {differs}; name another file, or delete it")


@contextmanager
def alone(file: Path | None) -> Iterator[None]:
    """Keep other processes from searching in the same file, where the system can.

    Raises:
        UnavailableError: another one is.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    if file is None:
        yield
        return
    with file.open("rb") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UnavailableError(f"another process is searching in {file}; wait for it, or name another") from error
        yield


def open_study(file: Path | None) -> optuna.Study:
    """Return the study that a file holds, new if there is no such file; without a file one in memory.

    Raises:
        UnavailableError: optuna is not installed, or the file cannot be read or written.
    """
    try:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend
    except ImportError as error:
        raise UnavailableError(f"tuning needs optuna: {installing('tune')}") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    options: dict[str, Any] = {"study_name": "esdllm", "direction": "maximize", "load_if_exists": True}
    if file is None:
        return optuna.create_study(**options)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        _mend(file)
        return optuna.create_study(storage=JournalStorage(JournalFileBackend(str(file))), **options)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UnavailableError(f"cannot keep the search in {file}: {error}; name another file") from error


def _mend(file: Path) -> None:
    """Leave out a last line that a killed process did not finish, to which optuna would append the next.

    Raises:
        ValueError: the file holds something else than a search.
        UnavailableError: another process is searching in it, and may be writing that line.
    """
    held = file.read_bytes() if file.exists() else b""
    if not held:
        return
    first, *_ = held.split(b"\n", 1)
    if not first.startswith(b'{"op_code"'):
        raise ValueError(f"it begins with {first[:20]!r} and is no search's")
    if not held.endswith(b"\n"):
        with alone(file), file.open("r+b") as opened:
            opened.truncate(held.rfind(b"\n") + 1)


def sampler(seed: int, tried: int) -> optuna.samplers.BaseSampler:
    """Return the sampler of one draw; mixed, for seeds that follow one another would repeat each other's draws."""
    import optuna

    mixed = int(np.random.SeedSequence((seed, tried)).generate_state(1)[0])
    return optuna.samplers.TPESampler(seed=mixed, n_startup_trials=12, multivariate=True)

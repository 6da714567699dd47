"""Who goes first and who is admitted, from what a command was asked."""

from __future__ import annotations

import attrs

from esdllm.errors import InputError, known
from esdllm.serving.scheduler import ADMISSIONS, POLICIES, Admission, Policy

__all__ = ["scheduling_admission", "scheduling_policy"]


def scheduling_policy(name: str, patience: int | None) -> Policy:
    """Return a scheduler's policy; its own patience if `patience` is None.

    Raises:
        InputError: there is none of this name, or it has no patience.
    """
    if name not in POLICIES:
        raise InputError(f"--policy {name}: {known(name, POLICIES)}")
    if patience is None:
        return _made(name)
    patient = [other for other, made in POLICIES.items() if "patience" in attrs.fields_dict(made)]
    if name not in patient:
        raise InputError(f"--patience {patience}: the policy {name} has none; {' and '.join(patient)} have")
    return _made(name, patience=patience)


def _made(name: str, **options: int) -> Policy:
    policy: Policy = POLICIES[name](**options)
    return policy


def scheduling_admission(name: str) -> Admission:
    """Return who is admitted.

    Raises:
        InputError: there is none of this name.
    """
    if name not in ADMISSIONS:
        raise InputError(f"--admission {name}: {known(name, ADMISSIONS)}")
    return ADMISSIONS[name]()

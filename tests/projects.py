"""A project's file that several test files use."""

from __future__ import annotations

from collections.abc import Callable

Run = Callable[..., tuple[int, str, str]]
"""runs the command; gives its exit code, standard output and standard error"""

FILE = """\
preset = "es-dllm"
gen_length = 64
block_length = 32

[refresh]
block_refresh = 8

[profiles.fast]
block_length = 16
unmasking = { name = "threshold", threshold = 0.8 }

[profiles.exact]
preset = "vanilla"
"""

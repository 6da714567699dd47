"""Collected only where tools/check_xformers.sh runs it: in an environment of its own, under Triton's interpreter."""

from __future__ import annotations

import os

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["*"]

"""The pytest plugin: free where it is not used, and a plugin's whole test in two lines where it is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from esdllm import Catalogue, Model

FREE = """
import sys

def test_nothing_of_esdllm_is_imported_for_those_who_do_not_use_it():
    assert "esdllm_pytest" in sys.modules
    assert not {"esdllm", "torch"} & set(sys.modules)
"""

TWO_LINES = """
def test_it(esdllm_check):
    esdllm_check("skip", "by-depth", keep=[[0.0, 1.0], [0.5, 0.5]])

def test_both_families(esdllm_tiny_model):
    assert esdllm_tiny_model.spec.n_layers == 4

def test_a_wrong_option(esdllm_check):
    esdllm_check("skip", "by-depth", keeep=1)
"""


def _pytest(folder: Path, text: str) -> str:
    (folder / "test_it.py").write_text(text, encoding="utf-8")
    options = ("-q", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", str(folder))
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(folder)], capture_output=True, text=True, env=env, check=False
    )
    return done.stdout + done.stderr


@pytest.mark.slow
def test_a_project_that_does_not_use_it_imports_nothing_of_esdllm(tmp_path: Path) -> None:
    assert "1 passed" in _pytest(tmp_path, FREE)


@pytest.mark.slow
def test_a_component_is_checked_by_its_name_and_a_test_with_a_model_runs_once_a_family(tmp_path: Path) -> None:
    out = _pytest(tmp_path, TWO_LINES)
    assert "1 failed, 3 passed" in out
    assert "skip 'by-depth' has no option 'keeep'; did you mean 'keep'?" in out


def test_the_catalogue_holds_the_installed_plugins(esdllm_catalogue: Catalogue) -> None:
    assert "by-depth" in esdllm_catalogue.names("skip")


def test_a_tiny_model_is_of_the_family_asked_for(esdllm_tiny_model: Model) -> None:
    assert esdllm_tiny_model.spec.logit_shift == (esdllm_tiny_model.spec.family == "Dream")

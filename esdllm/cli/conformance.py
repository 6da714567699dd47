"""`esdllm conformance`."""

from __future__ import annotations

from collections.abc import Mapping

import attrs
import typer

from esdllm.cli.options.conformance import ConformanceCheckOptions
from esdllm.cli.shared import stderr


@attrs.frozen(kw_only=True)
class ConformanceCheck(ConformanceCheckOptions):
    """Runs the recorded cases, and prints those that differ."""

    def run(self) -> None:
        """Run the cases, and print those that differ."""
        from esdllm.testing.conformance import NotRun
        from esdllm.testing.conformance import conformance as run

        seen = [0, 0, 0]
        with stderr().status("reading") as status:

            def show(name: str, problem: str | None) -> None:
                left = isinstance(problem, NotRun)
                seen[2 if left else problem is not None] += 1
                if problem is not None and not left:
                    typer.echo(f"FAILED {name}: {problem}")
                status.update(f"{seen[0]} passed, {seen[1]} failed, {seen[2]} not run  {name}")

            found = run(
                self.folder, self.model, self.mode, show, sets=self.sets or (), device=self.device, every=self.every
            )
        for why, names in _by_reason(found.not_run).items():
            typer.echo(f"not run: {why}: {names[0]}{f' and {len(names) - 1} more' if names[1:] else ''}")
        typer.echo(str(found))
        if found.failures or len(found.not_run) == len(found.cases):
            raise typer.Exit(1)


def _by_reason(not_run: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the cases that could not be run, by why."""
    found: dict[str, list[str]] = {}
    for name, why in not_run.items():
        found.setdefault(why, []).append(name)
    return found

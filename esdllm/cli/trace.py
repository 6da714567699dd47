"""`esdllm trace`."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import attrs
import typer
from rich.progress import Progress, TaskID

from esdllm.cli.choice import Choice, fixed_sets
from esdllm.cli.loading import load_asked
from esdllm.cli.options.trace import RecordOptions
from esdllm.cli.progress import CountingBar
from esdllm.cli.prompts import read_prompt
from esdllm.cli.shared import check_writable, counted, stderr
from esdllm.config import DecodeConfig
from esdllm.errors import InputError
from esdllm.measure.evaluation import Contender, check_names
from esdllm.measure.tracing import Trace, page
from esdllm.measure.tracing import trace as traced
from esdllm.plugins.catalogue import Catalogue
from esdllm.runtime.components import Components
from esdllm.runtime.engine import Engine


@attrs.frozen(kw_only=True)
class Record(RecordOptions):
    """Traces one run or two, and writes the page."""

    def run(self) -> None:
        """Trace the runs, print their answers and write what was found."""
        self._check_files()
        choice = Choice.of(self)
        catalogue = Catalogue.load()
        runs = self._configurations(choice, catalogue)
        text = read_prompt(self.prompt)
        name, loaded = load_asked(self, catalogue)
        engines = {run: Engine.build(loaded, config, catalogue) for run, config in runs.items()}
        found = self._traces(engines, name, text)
        for one in found:
            typer.echo(one.text if len(found) == 1 else f"{one.name}: {one.text}")
            _tell(_summary(one))
        self._write(found)

    def _check_files(self) -> None:
        """Find out before the long work what would be in its way."""
        if self.html is None and self.json_file is None:
            raise InputError("a trace with nowhere to go; give --html FILE, --json FILE or both")
        for path in (self.html, self.json_file):
            if path is not None and path.is_dir():
                raise InputError(f"{path} is a folder; name a file")
            check_writable(path)

    def _configurations(self, choice: Choice, catalogue: Catalogue) -> dict[str, DecodeConfig]:
        """Return the runs' configurations by the runs' names."""
        name, decode = _name(choice), choice.config(catalogue)
        if self.against is None:
            return {name: decode}
        other = Contender.of(self.against, catalogue, sets=fixed_sets(self), project=choice.project)
        check_names([other, Contender(name, decode)])
        Components.resolve(other.config, catalogue)  # a wrong option is found before weights are read
        return {name: decode, other.name: other.config}

    def _traces(self, engines: dict[str, Engine], model: str, prompt: str) -> list[Trace]:
        """Return the traces of a prompt by each engine, with a bar meanwhile."""
        found = []
        with CountingBar(stderr(), at_once=False) as bar:
            for name, engine in engines.items():
                watch = partial(_show, bar, bar.add_task(name), name)
                one = traced(
                    engine,
                    prompt,
                    name=name,
                    model=model,
                    chat=self.chat,
                    seed=self.seed,
                    timed=self.times,
                    watch=watch,
                )
                found.append(one)
                engine.close()
        return found

    def _write(self, found: list[Trace]) -> None:
        if self.html is not None:
            self.html.write_text(page(found), encoding="utf-8")
            _tell(f"{self.html}: {_size(self.html)}; open it in a browser")
        if self.json_file is not None:
            told = json.dumps([one.to_dict() for one in found], ensure_ascii=False, separators=(",", ":"))
            self.json_file.write_text(told + "\n", encoding="utf-8")
            _tell(f"{self.json_file}: {_size(self.json_file)}")


def _tell(words: str) -> None:
    stderr().print(words, style="dim", soft_wrap=True, markup=False)


def _show(bar: Progress, task: TaskID, name: str, stage: str, decided: int, masks: int) -> None:
    bar.update(task, description=f"{name}: {stage}", completed=decided, total=masks)


def _name(choice: Choice) -> str:
    """Return what the first run is called: its preset or profile, its file, and what --set sets."""
    start = [choice.profile or choice.base(), choice.file.stem if choice.file else None]
    return " ".join([word for word in start if word] + list(choice.sets)) or "as configured"


def _summary(found: Trace) -> str:
    times = "" if found.seconds is None else f" in {found.seconds:.2f} s"
    work = f"{found.layer_share:.1%} of all positions in all layers"
    return f"{found.name}: {counted(len(found.steps), 'forward')}{times}, {work}"


def _size(path: Path) -> str:
    size = path.stat().st_size
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"

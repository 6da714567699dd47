"""`esdllm bench`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import attrs

from esdllm.checkpoints.loading import resolve_device
from esdllm.cli.bench_tables import print_comparison, print_curve, print_report
from esdllm.cli.choice import fixed_sets, tell_found
from esdllm.cli.geometry import named_model
from esdllm.cli.options.bench import BenchCompareOptions, BenchCurveOptions, BenchRunOptions, _MeasuringOptions
from esdllm.cli.progress import CountingBar
from esdllm.cli.shared import check_writable, hint_dtype, print_json, stderr
from esdllm.config.project import current_project, environment_layers
from esdllm.errors import InputError, known
from esdllm.measure.benchmarking import (
    AXES,
    BenchContender,
    Peak,
    Report,
    Setting,
    bench,
    bench_fresh,
    compare,
    contenders_named,
    curve,
    read_report,
)
from esdllm.measure.benchmarking.plots import plot_curve, plot_report
from esdllm.measure.plots import check_format
from esdllm.plugins.catalogue import Catalogue

_DEFAULT_GEOMETRY = "tiny"


@attrs.frozen(kw_only=True)
class _Measuring(_MeasuringOptions):
    """What every measurement does."""

    def setting(self, catalogue: Catalogue) -> Setting:
        """Return what the contenders have in common; says where its dtype is slow."""
        asked = self.geometry_name or (None if self.model else _DEFAULT_GEOMETRY)
        name, found = named_model(self.model, asked, catalogue)
        made = None if isinstance(found, str) else found
        threads = {"threads": self.threads} if self.threads else {}
        setting = Setting(
            name,
            made,
            self.prompt_length,
            self.batch,
            self.device,
            self.dtype,
            self.quantize,
            family=self.family,
            compute=self.compute,
            **threads,
            sample=self.sample,
        )
        hint_dtype(resolve_device(self.device), setting.weights(catalogue).dtype)
        return setting

    def contenders_of(self, words: Sequence[str], catalogue: Catalogue) -> list[BenchContender]:
        """Return the contenders that words name."""
        project, fixed = current_project(None), [*fixed_sets(self), *(self.sets or ())]
        found = contenders_named(words, catalogue, fixed, project)
        tell_found(project, environment_layers())
        return found

    def check_plot(self) -> None:
        """Find out before the long work whether its picture can be written."""
        check_format(self.plot)
        check_writable(self.plot)

    def draw(self, draw: Callable[[Path], None]) -> None:
        """Draw what was measured, if that is asked."""
        if self.plot:
            draw(self.plot)
            stderr().print(f"wrote {self.plot}", style="dim", soft_wrap=True, markup=False)


@attrs.frozen(kw_only=True)
class BenchRun(BenchRunOptions, _Measuring):
    """Measures contenders in turns, and prints the report."""

    def run(self) -> None:
        """Measure, print, and draw."""
        self.check_plot()
        catalogue = Catalogue.load()
        contenders = self.contenders_of(self.contenders or [], catalogue)
        measure = _measure(catalogue, contenders, self.rounds, self.fresh, self.breakdown, self.peak)
        report = measure(self.setting(catalogue))
        if self.as_json:
            print_json(report.to_dict())
        else:
            print_report(report)
        self.draw(lambda path: plot_report(report, path))


@attrs.frozen(kw_only=True)
class BenchCurve(BenchCurveOptions, _Measuring):
    """Measures size by size, and prints the curve."""

    def run(self) -> None:
        """Measure size by size, print, and draw."""
        self.check_plot()
        if self.over not in AXES:
            raise InputError(f"--over {self.over}; {known(self.over, AXES)}")
        catalogue = Catalogue.load()
        sizes = [int(word) for word in self.words if word.isdecimal()]
        contenders = self.contenders_of([word for word in self.words if not word.isdecimal()], catalogue)
        measure = _measure(catalogue, contenders, self.rounds, self.fresh, profile=False, peak=False)
        found = curve(self.setting(catalogue), contenders, self.over, sizes, measure)
        if self.as_json:
            print_json(found.to_dict())
        else:
            print_curve(found)
        self.draw(lambda path: plot_curve(found, path))


@attrs.frozen(kw_only=True)
class BenchCompare(BenchCompareOptions):
    """Reads two reports, and prints what changed."""

    def run(self) -> None:
        """Read both, and print what changed."""
        print_comparison(compare(read_report(self.before), read_report(self.after)))


def _measure(
    catalogue: Catalogue, named: Sequence[BenchContender], rounds: int, fresh: bool, profile: bool, peak: bool
) -> Callable[[Setting], Report]:
    """Return what measures the contenders under a setting, with a bar for each."""

    def measure(setting: Setting) -> Report:
        runs = rounds if fresh else 1 + rounds + profile
        with CountingBar(stderr()) as bar:
            bars = {contender.name: bar.add_task(contender.name, total=runs) for contender in named}

            def tell(name: str) -> None:
                bar.advance(bars[name])

            if fresh:
                return bench_fresh(
                    setting, named, rounds=rounds, profiled=profile, peak=peak, catalogue=catalogue, progress=tell
                )
            return bench(
                setting,
                named,
                rounds=rounds,
                profiled=profile,
                peak=None if peak else _no_peak,
                catalogue=catalogue,
                progress=tell,
            )

    return measure


def _no_peak(model: object) -> Peak | None:
    return None

"""Speed, measured: contenders side by side on one model, what each kind of step takes, and how that compares with what it could.

from esdllm.benchmarking import Setting, bench, entries, geometry

catalogue = esdllm.Catalogue.load()
setting = Setting("tiny", geometry("tiny", catalogue), prompt_length=64)
report = bench(setting, entries(["vanilla", "es-dllm"], catalogue, ["gen_length=32"]), catalogue=catalogue)
"""

from esdllm.benchmarking.comparing import Change, Comparison, compare
from esdllm.benchmarking.curve import AXES, Axis, Curve, curve, slope
from esdllm.benchmarking.fresh import bench_fresh
from esdllm.benchmarking.geometries import SCALED, geometry, geometry_names
from esdllm.benchmarking.peak import Peak, Rate, measure_peak
from esdllm.benchmarking.profiling import GAPS, PARTS
from esdllm.benchmarking.report import KindTimes, Memory, Outcome, Report, Spread, read_report, spread
from esdllm.benchmarking.running import bench
from esdllm.benchmarking.setting import BARE, DEFAULTS, Entry, Setting, entries

__all__ = [
    "AXES",
    "BARE",
    "DEFAULTS",
    "GAPS",
    "PARTS",
    "SCALED",
    "Axis",
    "Change",
    "Comparison",
    "Curve",
    "Entry",
    "KindTimes",
    "Memory",
    "Outcome",
    "Peak",
    "Rate",
    "Report",
    "Setting",
    "Spread",
    "bench",
    "bench_fresh",
    "compare",
    "curve",
    "entries",
    "geometry",
    "geometry_names",
    "measure_peak",
    "read_report",
    "slope",
    "spread",
]

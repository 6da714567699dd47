"""Speed, measured: contenders side by side on one model, what each kind of step takes, and how that compares with what it could.

from esdllm.measure.benchmarking import Setting, bench, contenders_named, geometry

catalogue = esdllm.Catalogue.load()
setting = Setting("tiny", geometry("tiny", catalogue), prompt_length=64)
report = bench(setting, contenders_named(["vanilla", "es-dllm"], catalogue, ["gen_length=32"]), catalogue=catalogue)
"""

from esdllm.measure.benchmarking.comparing import Change, Comparison, compare
from esdllm.measure.benchmarking.curve import AXES, Axis, Curve, curve, slope
from esdllm.measure.benchmarking.fresh import bench_fresh
from esdllm.measure.benchmarking.geometries import SCALED, geometry, geometry_names
from esdllm.measure.benchmarking.peak import Peak, Rate, measure_peak
from esdllm.measure.benchmarking.profiling import GAPS, WORK
from esdllm.measure.benchmarking.report import KindTimes, PeakMemory, Quartiles, Report, Timing, quartiles, read_report
from esdllm.measure.benchmarking.running import bench
from esdllm.measure.benchmarking.setting import BARE, DEFAULTS, BenchContender, Setting, contenders_named

__all__ = [
    "AXES",
    "BARE",
    "DEFAULTS",
    "GAPS",
    "SCALED",
    "WORK",
    "Axis",
    "BenchContender",
    "Change",
    "Comparison",
    "Curve",
    "KindTimes",
    "Peak",
    "PeakMemory",
    "Quartiles",
    "Rate",
    "Report",
    "Setting",
    "Timing",
    "bench",
    "bench_fresh",
    "compare",
    "contenders_named",
    "curve",
    "geometry",
    "geometry_names",
    "measure_peak",
    "quartiles",
    "read_report",
    "slope",
]

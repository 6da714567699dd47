"""A server under load: requests that come at a rate or as others end, and how long each takes, over a session or an address.

load = Load(rate=2.0)
asked = drawn(64, Lengths.parse("16:64"), Lengths.parse("16:256"), vocab, seed=0)
answered = drive(SessionTarget(session), asked, load)
"""

from esdllm.measure.benchmarking.serving.driving import Answered, Pending, Target, drive
from esdllm.measure.benchmarking.serving.remote import Looked, ServerTarget, Watching
from esdllm.measure.benchmarking.serving.report import FORMAT, Percentiles, ServeReport, ServeRun, percentiles
from esdllm.measure.benchmarking.serving.running import bench_engine, bench_server
from esdllm.measure.benchmarking.serving.targets import SessionTarget, StaticBatches, static_batches
from esdllm.measure.benchmarking.serving.traffic import Lengths, Load, Wanted, drawn, read_wanted

__all__ = [
    "FORMAT",
    "Answered",
    "Lengths",
    "Load",
    "Looked",
    "Pending",
    "Percentiles",
    "ServeReport",
    "ServeRun",
    "ServerTarget",
    "SessionTarget",
    "StaticBatches",
    "Target",
    "Wanted",
    "Watching",
    "bench_engine",
    "bench_server",
    "drawn",
    "drive",
    "percentiles",
    "read_wanted",
    "static_batches",
]

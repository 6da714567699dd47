"""What a run did, position by position and layer by layer, and a page that shows it.

Found from outside: the engine's components are wrapped, so that a run that is not traced pays nothing.
"""

from esdllm.measure.tracing.page import page
from esdllm.measure.tracing.run import trace
from esdllm.measure.tracing.trace import Candidate, Scored, Trace, TraceStep

__all__ = ["Candidate", "Scored", "Trace", "TraceStep", "page", "trace"]

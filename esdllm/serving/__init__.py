"""Many requests at once over one engine: who waits, who is decoded, and what is told of each."""

from esdllm.serving.requests import Completion, FinishReason, Request, Update
from esdllm.serving.session import Session, Ticket
from esdllm.serving.state import SessionState

__all__ = ["Completion", "FinishReason", "Request", "Session", "SessionState", "Ticket", "Update"]

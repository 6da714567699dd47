"""Who waits and who goes: a bounded queue before a number of slots, and which rows make the next step together.

    scheduler = Scheduler(slots=8, max_queue=64)
    scheduler.offer(number, columns=96, now=now, deadline=None)
    for number in scheduler.admissions(upcoming, now):
        scheduler.admitted(number, slots.admit(...))
    group = scheduler.choose(upcoming)
    slots.step(group)
    scheduler.stepped(group)

Host integers only; nothing here imports torch, reads a clock or starts a thread: times are passed in.
"""

from esdllm.serving.scheduler.admission import ADMISSIONS, Admission, Alike, AtRefreshes, InOrder
from esdllm.serving.scheduler.policies import POLICIES, OldestFirst, Policy, RefreshesTogether, WidestFirst
from esdllm.serving.scheduler.rows import Queued, Ready, Upcoming
from esdllm.serving.scheduler.scheduling import Scheduler

__all__ = [
    "ADMISSIONS",
    "POLICIES",
    "Admission",
    "Alike",
    "AtRefreshes",
    "InOrder",
    "OldestFirst",
    "Policy",
    "Queued",
    "Ready",
    "RefreshesTogether",
    "Scheduler",
    "Upcoming",
    "WidestFirst",
]

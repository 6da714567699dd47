"""How wrong early skipping can be: bounds on one attention layer, carried on to the logits, and the share of a run they certify.

`attention` bounds one head whose cached keys and values are stale, `stack` goes through norm, feed-forward and head to the
logits, `certified` watches a run. The derivations are in the docs, under *Bounds*.
"""

from esdllm.testing.bounds.attention import AttentionDrift, attention_bound, attention_drift
from esdllm.testing.bounds.certified import Certified, Commit, Shares
from esdllm.testing.bounds.stack import StackWeights

__all__ = [
    "AttentionDrift",
    "Certified",
    "Commit",
    "Shares",
    "StackWeights",
    "attention_bound",
    "attention_drift",
]

"""The gate: a verdict on performance from what does not vary; here are the names that scenario files use."""

from kvmattr.gate.scenario import Claim, Scenario, Versus, Work, claim, scenario

__all__ = ["Claim", "Scenario", "Versus", "Work", "claim", "scenario"]

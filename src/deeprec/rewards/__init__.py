"""Rewards: pure functions of a trace and its target."""

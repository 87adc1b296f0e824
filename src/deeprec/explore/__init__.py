"""Exploration: the text protocol, the environment, the trace, and the one multi-turn loop."""

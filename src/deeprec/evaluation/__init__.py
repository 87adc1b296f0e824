"""Metrics, intervals and reports of an evaluation."""

"""Retrievers: what an explorer asks. Their interface, simple baselines, and the parts that the TRM scores with."""

"""Recommendations for many users, to a file."""

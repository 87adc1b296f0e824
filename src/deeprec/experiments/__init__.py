"""Experiments: data sets, systems and seeds as data, run part by part, and reported in one page."""

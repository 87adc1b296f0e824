"""The traditional recommendation model (TRM) that listens to a preference, and what else can retrieve."""

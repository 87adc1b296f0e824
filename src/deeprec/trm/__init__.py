"""The TRM, a sequential recommender that a preference in words conditions: network, training, calibration."""

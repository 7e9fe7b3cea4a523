"""Measurements: paired, on the machine at hand, printed as ratios. Not part of the tests."""

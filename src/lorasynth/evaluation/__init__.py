"""Measures: likeness, attributes and prompts, diversity, calibration, intervals."""

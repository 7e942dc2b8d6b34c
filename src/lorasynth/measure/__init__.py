"""Measures: likeness, prompt following, diversity, memorisation."""

"""Experiments: how good the parts and the whole are, beside strong and simple baselines."""

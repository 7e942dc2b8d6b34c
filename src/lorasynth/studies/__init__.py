"""Studies: the paper's claims one by one, and where the system's quality comes from.

A leaf: the core never imports it, and its commands join by entry point.
"""

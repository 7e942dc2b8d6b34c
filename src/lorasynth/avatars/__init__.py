"""The embedded domain: a small base model of drawn portraits, and how it is trained."""

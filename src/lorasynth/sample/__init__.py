"""New adapters of nobody in particular, without training (the paper's contributions)."""

from lorasynth.sample.priors import PRIORS, Prior, convex, gaussian, standard

__all__ = ["PRIORS", "Prior", "convex", "gaussian", "standard"]

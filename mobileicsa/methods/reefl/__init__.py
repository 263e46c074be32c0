"""ReeFL: recurrent early exits for federated learning, after arXiv 2405.14791 (ICML 2024), from its formulas."""

from mobileicsa.methods.reefl.method import METHOD

__all__ = ["METHOD"]

"""Lowering: from a model with known shapes to a plan of native kernels."""

"""Generators of native float32 kernels: each takes a frozen specification and gives a `Kernel`."""

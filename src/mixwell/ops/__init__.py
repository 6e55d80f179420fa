"""Tensor kernels with no policy in them."""

"""Triton kernels, one file an operation, imported as fcn_fast.kernels.

None has landed yet: on CUDA the operators run their plain PyTorch reference.
"""

"""Triton kernels with their torch references: tensors in, tensors out."""

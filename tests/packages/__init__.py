"""Kernels that nobody here wrote run in the simulator, unmodified, and are compared with plain PyTorch."""

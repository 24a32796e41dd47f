"""The course's Triton kernels, an algorithm a file. They import nothing but Triton and run unmodified on GPUs and in the simulator."""

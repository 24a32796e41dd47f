"""The course's Triton kernels, an algorithm a file. They import nothing but Triton."""

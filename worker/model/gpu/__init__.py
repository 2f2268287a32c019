"""The decoder's products on NVIDIA GPUs, in Triton. Triton is optional: it comes with torch's CUDA builds alone."""

"""What the engine itself computes on NVIDIA GPUs: attention over the pages, and the sampler. In Triton."""

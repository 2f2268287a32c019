// What products and attention need: fp16 as bits, and how the blocks of a cluster read each other.
#pragma once

#include "half.cuh"

__device__ __forceinline__ void cluster_barrier() {
  asm volatile("barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;" ::: "memory");
}
// What `mine` is in the shared memory of another block of the cluster.
__device__ __forceinline__ float of_neighbour(const float* mine, unsigned rank) {
  unsigned there;
  float f;
  unsigned here = (unsigned)__cvta_generic_to_shared(mine);
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(here), "r"(rank));
  asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(f) : "r"(there) : "memory");
  return f;
}

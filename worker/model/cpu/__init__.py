"""The quantised layers of a CPU, in C++: their sources, their build, and the backends made of them."""

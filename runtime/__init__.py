"""From kernels to results: the compile pipeline, executables, memory, caches and artifacts."""

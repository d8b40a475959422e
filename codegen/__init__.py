"""Code generation: fused regions to kernel programs, schedules, and the emitters of each backend."""

"""The command line, the built-in models and the benchmarks."""

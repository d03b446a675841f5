"""What `python -m benchmarks throughput` measures, one part a file."""

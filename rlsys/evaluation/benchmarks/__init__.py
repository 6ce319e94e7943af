"""Published safety benchmarks, one file each."""

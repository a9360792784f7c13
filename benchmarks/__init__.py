"""Benchmarks, run as `python -m benchmarks.<name>`. Each prints a table and writes one JSON record."""

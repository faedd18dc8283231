"""Workloads to try things with."""

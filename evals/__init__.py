"""Measurements that can fail: equivalence, acceptance, throughput and validity of constrained answers."""

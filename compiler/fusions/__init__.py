"""Fused ops, one a file: what each computes, and where in a graph it may stand."""

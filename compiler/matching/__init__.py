"""Where a fused op may stand in a graph, and the check that it computes what it replaces."""

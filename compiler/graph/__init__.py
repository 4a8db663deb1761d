"""The layer graph: nodes, types, what an op is, and how graphs are verified and rewritten."""

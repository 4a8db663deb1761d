"""YAML text to a tree of nodes that know their place, and the arithmetic over dims."""

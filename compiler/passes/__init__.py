"""Passes over layer graphs, one a file. Their list, in order, is compiler/pipeline.py."""

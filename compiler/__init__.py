"""Spec to layer graph to torch.fx program."""

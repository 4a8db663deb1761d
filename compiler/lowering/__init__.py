"""From a layer graph to torch.fx modules."""

"""Parameters while a model runs: initial values, fast look-up, tensors that are made of them."""

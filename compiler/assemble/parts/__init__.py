"""The parts of a model. Each file declares the parameters of one and builds its nodes."""

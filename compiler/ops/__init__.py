"""One file an op. See docs/adding_an_op.md."""

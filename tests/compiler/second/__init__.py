"""The trunk of a spec a second time: from the text of specs/LANGUAGE.md, in plain torch.

It shares nothing with the compiler but the names of parameters. `body` is what is inside inputs,
norms and parts, `mixes` and `lanes` are the wiring, and `trunk` runs a model.
"""

from second.trunk import Second

__all__ = ["Second"]

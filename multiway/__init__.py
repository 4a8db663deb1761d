"""multiway compiles declarative architecture specs to readable torch.fx modules.

    import multiway as mw
    spec = mw.load("mudd-pythia-1.4b", set={"depth": 12})
    graph = mw.build(spec, head="lm")
    model = mw.compile(spec, head="lm")
"""

from importlib.metadata import version

from multiway.api import build, compile, import_weights, load, rename_table, save
from multiway.specs import MultiwayError, Spec

__version__ = version("multiway")

__all__ = [
    "MultiwayError",
    "Spec",
    "__version__",
    "build",
    "compile",
    "import_weights",
    "load",
    "rename_table",
    "save",
]

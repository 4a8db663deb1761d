"""multiway compiles declarative architecture specs to readable torch.fx modules.

import multiway as mw
spec = mw.load("mudd-pythia-1.4b", set={"depth": 12})
graph = mw.build(spec, head="lm")
model = mw.compile(spec, head="lm")
"""

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from multiway.api import (
    build,
    compile,
    export_weights,
    import_weights,
    load,
    rename_table,
    save,
    use_plugin,
)
from multiway.specs import MultiwayError, MultiwayWarning, Spec

if TYPE_CHECKING:
    from multiway.runtime.model import Model

__version__ = version("multiway")


def __getattr__(name: str) -> Any:
    """`Model` is looked up when it is first used, because it needs torch."""
    if name == "Model":
        from multiway.runtime.model import Model

        return Model
    raise AttributeError(f"module 'multiway' has no attribute {name!r}")


__all__ = [
    "Model",
    "MultiwayError",
    "MultiwayWarning",
    "Spec",
    "__version__",
    "build",
    "compile",
    "export_weights",
    "import_weights",
    "load",
    "rename_table",
    "save",
    "use_plugin",
]

"""multiway schema: the JSON Schema of the language."""

from __future__ import annotations

from multiway.commands.common import print_json
from multiway.compiler.graph.registry import activations
from multiway.compiler.heads import kinds
from multiway.specs import document_schema


def command() -> None:
    """The JSON Schema (2020-12) of a spec, for editors."""
    print_json(document_schema(kinds(), activations()))

"""The language: what an author may write. Pure Python, imports no torch."""

from multiway.specs.config import Kinds
from multiway.specs.errors import MultiwayError, Problem, Report, Span
from multiway.specs.language import Head
from multiway.specs.schema import document_schema
from multiway.specs.spec import Spec, load

__all__ = [
    "Head",
    "Kinds",
    "MultiwayError",
    "Problem",
    "Report",
    "Span",
    "Spec",
    "document_schema",
    "load",
]

"""The language: what an author may write. Pure Python, imports no torch."""

from multiway.specs.errors import MultiwayError, MultiwayWarning, Problem, Report, Span
from multiway.specs.language.document import Head
from multiway.specs.language.fields import Kinds
from multiway.specs.load import load
from multiway.specs.reading.schema import document_schema
from multiway.specs.spec import Spec

__all__ = [
    "Head",
    "Kinds",
    "MultiwayError",
    "MultiwayWarning",
    "Problem",
    "Report",
    "Span",
    "Spec",
    "document_schema",
    "load",
]

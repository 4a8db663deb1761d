"""The zoo: families as YAML, and the catalogue that reads them."""

from multiway.zoo.catalogue import Catalogue, Entry, catalogue

__all__ = ["Catalogue", "Entry", "catalogue"]

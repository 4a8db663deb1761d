"""From documents to values: merged, written out, checked against the schema, converted."""

"""Models on files and texts: pictures and tokenizers in, answers out."""

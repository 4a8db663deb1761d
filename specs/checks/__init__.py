"""What a well-formed spec can still get wrong."""

"""How long a step takes, beside another, and what it needs of memory."""

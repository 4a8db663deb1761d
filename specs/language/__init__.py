"""What may be written in a spec: one frozen dataclass a mapping, one field a key."""

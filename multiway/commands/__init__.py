"""One file a command. Each has a function `command` that multiway/cli.py registers."""

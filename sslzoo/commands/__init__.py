"""Subcommands of the command line: thin layers over Python functions."""

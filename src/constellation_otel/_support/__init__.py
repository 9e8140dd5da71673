"""Nothing of the domain: a drawer of small tools, each imported from its own file."""

"""What events travel by: one module for each transport, each with its source, its sink, or both."""

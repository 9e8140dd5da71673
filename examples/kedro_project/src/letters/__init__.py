"""A Kedro project whose runs are traces."""

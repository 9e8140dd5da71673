"""Runs every benchmark and prints one line for each.

Absolute times are this machine's at this moment; the ratios are what is claimed.
"""

from __future__ import annotations

from bench import hot_path, import_time, journal, otlp_encoding

if __name__ == "__main__":
    hot_path.main()
    import_time.main()
    otlp_encoding.main()
    journal.main()

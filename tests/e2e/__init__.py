"""End-to-end tests: this package against the real servers that its users have.

A package, unlike the other tests, so that its modules can import `peers` beside them.
"""

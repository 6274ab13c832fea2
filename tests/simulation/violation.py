"""The error that ends a world."""


class Violation(Exception):
    """A guarantee does not hold."""

"""One program for each contestant, in the style of its own documentation.

The Python ones run in the peers' environment: they import nothing of the product. All take the same arguments and print the same
answer (`answer.py`); the Java ones do it themselves.
"""

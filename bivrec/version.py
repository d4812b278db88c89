"""The version of bivrec, kept apart so that setup.py and the command line can read it cheaply."""

__version__ = "0.1.0"

"""Data files of bivrec; see the README of this folder."""

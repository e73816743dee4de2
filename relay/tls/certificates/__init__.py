"""Certificates in files: read them, and report everything that is wrong with them."""

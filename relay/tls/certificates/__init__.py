"""Certificates as files: reads them, and finds everything that is wrong with them."""

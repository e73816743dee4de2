"""TLS: the only importer of OpenSSL and cryptography."""

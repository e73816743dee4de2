"""TLS: the only package besides `demo` that imports OpenSSL and cryptography."""

"""Certificate revocation lists: read, verify, and look certificates up."""

"""An identity as `relay.tls.identity` reads it from a certificate."""

from relay.tls.identity import Identity

ALICE = Identity(
    "CN=alice",
    "CN=Test CA",
    "0A",
    1000.0,
    2000.0,
    ("alice",),
    ("ops",),
    ("alice.corp",),
    ("spiffe://corp/alice",),
    "AB" * 32,
    b"the CA",
)

"""Distinguished names in certificates, to be compared with those in the configuration.

Never: raises because of what a certificate contains.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import groupby
from operator import attrgetter

from relay.config.distinguished_name import NameKey, name_key
from relay.tls.certificates.der import DerError, dotted
from relay.tls.certificates.names import attributes_of


@lru_cache(maxsize=256)
def key_of_name(der: bytes) -> NameKey:
    """A name in a certificate, to be compared; () if it is empty or cannot be read.

    A value that cannot be decoded starts with NUL, which no entry contains.
    """
    try:
        attributes = attributes_of(der)
    except DerError:
        return ()
    return name_key(
        [
            [
                (dotted(each.oid), f"\0{each.raw.hex()}" if each.value is None else each.value)
                for each in part
            ]
            for _, part in groupby(attributes, key=attrgetter("rdn"))
        ]
    )

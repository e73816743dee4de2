"""Loads the keys of OpenSSL's providers, in each process that uses them.

The supervisor builds the contexts of their certificates without a key. See
`relay.tls.certificates.provider_keys`.

Never: does anything about keys that are in files.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import chain

from relay.errors import StartupError
from relay.tls.certificates.pem import KeyPair
from relay.tls.certificates.provider_keys import REMEDY
from relay.tls.generation import Generation
from relay.tls.material import backend_context, route_context
from relay.tls.raw import NULL


def reload_provider_keys(generation: Generation) -> None:
    """Build the contexts with keys of a device, in this forked process.

    Raises StartupError.
    """
    for listener in generation.config.listener:
        for live, route in generation.terminating(listener):
            if live.pair.provider is not None:
                live.pair = _reloaded(live.where, live.pair)
                live.material = route_context(
                    live.where,
                    route,
                    live.pair,
                    live.cas,
                    live.trust.cas,
                    live.alpn_callback,
                    live.staple,
                    ciphers_checked=True,
                )
    for name, pool in generation.config.pool.items():
        for target in generation.targets[name]:
            if target.pair.provider is not None:
                target.pair = _reloaded(target.where, target.pair)
                target.context = backend_context(
                    target.where,
                    pool,
                    target.index,
                    target.name,
                    target.pair,
                    target.cas,
                    ciphers_checked=True,
                )


def release_provider_keys(generation: Generation) -> None:
    """Drop these contexts before the process ends, so that the device unloads the keys.

    A process that ends by `os._exit` frees nothing by itself.
    """
    for live in chain(*generation.inbound.values()):
        if live.pair.provider is not None:
            live.pair, live.material = replace(live.pair, key=None), live.owner
    for target in chain(*generation.targets.values()):
        if target.pair.provider is not None:
            target.pair, target.context = replace(target.pair, key=None), NULL


def _reloaded(where: str, pair: KeyPair) -> KeyPair:
    assert pair.provider is not None  # noqa: S101  for mypy
    try:
        return replace(pair, key=pair.provider.load())
    except ValueError as error:
        what = f"{where}: this process cannot load the private key of {pair.file}: {error}"
        raise StartupError(what, REMEDY) from None

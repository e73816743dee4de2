"""Certificates, keys, CAs and lists: files that relay can use, or what is to be done.

relay wants a leaf and its chain in one file, and all CAs in one file. Where httpd has
several files or a directory, the certificates in them are written to a new file.

Never: copies a private key, or reads one further than its first line of text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from relay.importer.machine import Machine
from relay.importer.names import safe_name
from relay.importer.report import Report, Verdict
from relay.importer.toml import Table
from relay.importer.tree import Directive, Scope

_CERTIFICATE = re.compile(
    rb"-----BEGIN ((?:TRUSTED |X509 )?CERTIFICATE)-----[^-]*-----END \1-----",
    re.DOTALL,
)
_LISTS = (".crl", ".pem", ".der")
_HASHED = re.compile(r"/[0-9a-f]{8}\.r[0-9]+$")
_ENCRYPTED = (b"BEGIN ENCRYPTED PRIVATE KEY", b"Proc-Type: 4,ENCRYPTED")
PLACEHOLDERS = "by-hand"


@dataclass(slots=True)
class Material:
    """Makes the files beside relay.toml. `files` are their names and contents."""

    machine: Machine
    resolve: Callable[[str], str]
    report: Report
    files: dict[str, bytes] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

    def certificates_in(self, path: str) -> list[bytes]:
        """The certificates in a file, in PEM; none if it cannot be read."""
        try:
            return [each[0] for each in _CERTIFICATE.finditer(self.machine.read(path))]
        except OSError:
            return []

    def placeholder(self, name: str) -> str:
        """The path of a file that the operator has to make."""
        path = f"{PLACEHOLDERS}/{name}"
        if path not in self.missing:
            self.missing.append(path)
        return path

    def pem(self, path: str, placeholder: str) -> tuple[str, str]:
        """Certificate and key of HAProxy's `crt`: one file, or FILE.key beside it."""
        if not path or path.endswith("/"):
            made = self.placeholder(placeholder)
            return made, made
        try:
            if b"PRIVATE KEY" not in self.machine.read(path):
                self.machine.read(f"{path}.key")
                return path, f"{path}.key"
        except OSError:
            pass
        return path, path

    def joined(self, name: str, paths: Iterable[str]) -> str:
        """A new file with the certificates of several files, each once; "" if none."""
        found: dict[bytes, None] = {}
        for path in paths:
            found |= dict.fromkeys(self.certificates_in(path))
        if not found:
            return ""
        data = b"\n".join(found) + b"\n"
        for known, contents in self.files.items():
            if contents == data:
                return known
        chosen = "ssl/" + safe_name(name, {each[4:-4] for each in self.files}) + ".pem"
        self.files[chosen] = data
        return chosen

    def pair(self, table: Table, scope: Scope, label: str) -> None:
        """`certificate` and `private_key` of a route."""
        leaves, keys = scope.every("sslcertificatefile"), scope.every("sslcertificatekeyfile")
        chain = scope.last("sslcertificatechainfile")
        if not leaves:
            table.remark("By hand: no SSLCertificateFile was found.")
            table.put("certificate", self.placeholder(f"{label}.pem"))
        for directive in leaves[1:]:
            reason = "one certificate per route; the first one was taken"
            self.report.say(directive, Verdict.LOST, reason)
        for directive in keys[1:]:
            self.report.say(directive, Verdict.LOST, "it is the key of another certificate")
        leaf = self.resolve(leaves[0].value) if leaves else ""
        if leaves:
            table.put("certificate", self._chained(leaf, chain, label), origin(leaves[0]))
            self.report.say(leaves[0], Verdict.SAME, "certificate")
        if keys and keys[0].value.lower().startswith("pkcs11:"):
            reason = "write a PEM that names the key, and set OPENSSL_CONF; see docs/operation.md"
            self.report.say(keys[0], Verdict.BY_HAND, reason)
            table.put("private_key", self.placeholder(f"{label}.key"), origin(keys[0]))
            return
        key = self.resolve(keys[0].value) if keys else leaf or self.placeholder(f"{label}.key")
        table.put("private_key", key, origin(keys[0]) if keys else "the same file")
        if keys:
            self.report.say(keys[0], Verdict.SAME, "private_key; the file stays where it is")
        self._passphrase(table, scope, key, label)

    def _chained(self, leaf: str, chain: Directive | None, label: str) -> str:
        """The path of a file with the leaf and its chain."""
        if chain is None:
            return leaf
        path = self.resolve(chain.value)
        mine, above = self.certificates_in(leaf), self.certificates_in(path)
        if mine and above and all(each in mine for each in above):
            self.report.say(chain, Verdict.BY_HAND, "done: the certificate's file has it already")
            return leaf
        if mine and above:
            made = self.joined(f"{label}-chain", [leaf, path])
            reason = f"done: {made} has both; make it again when one of them is renewed"
            self.report.say(chain, Verdict.BY_HAND, reason)
            return made
        made = self.placeholder(f"{label}-chain.pem")
        reason = f"the files cannot be read here: cat {leaf} {path} > {made}"
        self.report.say(chain, Verdict.BY_HAND, reason)
        return made

    def _passphrase(self, table: Table, scope: Scope, key: str, label: str) -> None:
        dialog = scope.last("sslpassphrasedialog")
        if not self._is_encrypted(key):
            reason = (
                "no key that is used needs it" if self._can_read(key) else "by hand, see the key"
            )
            self.report.say(dialog, Verdict.BY_HAND, reason)
            return
        table.put("key_passphrase_file", self.placeholder(f"{label}.pass"), "the key is encrypted")
        reason = "key_passphrase_file: a file with the passphrase, or credential:NAME"
        self.report.say(dialog, Verdict.BY_HAND, reason)

    def _can_read(self, path: str) -> bool:
        try:
            return bool(self.machine.read(path))
        except OSError:
            return False

    def _is_encrypted(self, path: str) -> bool:
        try:
            data = self.machine.read(path)
        except OSError:
            return False
        return any(mark in data for mark in _ENCRYPTED)

    def machine_pair(self, table: Table, scope: Scope, label: str) -> None:
        """`machine_certificate` and `machine_key` of a pool."""
        directive = scope.last("sslproxymachinecertificatefile")
        folder = scope.last("sslproxymachinecertificatepath")
        if directive is None and folder is not None:
            found = self.machine.files_in(self.resolve(folder.value))
            found = [each for each in found if self.certificates_in(each)]
            reason = f"{len(found)} certificates are there, and relay has one machine certificate"
            self.report.say(folder, Verdict.BY_HAND, f"{reason} per pool: choose one")
            path = found[0] if len(found) == 1 else self.placeholder("machine.pem")
            table.put("machine_certificate", path, origin(folder))
            table.put("machine_key", path)
            return
        if directive is None:
            table.remark(
                "By hand: the certificate that relay shows to the backends. httpd showed none"
                " (no SSLProxyMachineCertificateFile)."
            )
            table.put("machine_certificate", self.placeholder("machine.pem"))
            table.put("machine_key", self.placeholder("machine.pem"))
            return
        path = self.resolve(directive.value)
        chain = scope.last("sslproxymachinecertificatechainfile")
        whole = self._chained(path, chain, f"{label}-machine")
        table.put("machine_certificate", whole, origin(directive))
        table.put("machine_key", path, "the same file" if whole == path else "the key stays there")
        several = len(self.certificates_in(path)) > 1
        more = "; if the file has several pairs, relay shows the first one" if several else ""
        self.report.say(directive, Verdict.SAME, f"machine_certificate and machine_key{more}")

    def authorities(self, table: Table, key: str, scope: Scope, prefix: str, name: str) -> bool:
        """`client_ca` or `backend_ca`; false if the operator has to make the file."""
        file, folder = (
            scope.last(f"{prefix}cacertificatefile"),
            scope.last(f"{prefix}cacertificatepath"),
        )
        if folder is None and file is not None:
            table.put(key, self.resolve(file.value), origin(file))
            self.report.say(file, Verdict.SAME, key)
            return True
        if folder is None:
            return False
        paths = self.machine.files_in(self.resolve(folder.value))
        if file is not None:
            paths.insert(0, self.resolve(file.value))
            self.report.say(file, Verdict.SAME, f"{key}, together with those of the directory")
        made = self.joined(name, paths)
        if made:
            table.put(key, made, origin(folder))
            reason = f"done: {made} has the CAs of the directory; make it again when they change"
        else:
            made = self.placeholder(f"{name}.pem")
            table.put(key, made, origin(folder))
            reason = f"no CA can be read there; put the CAs into {made}"
        self.report.say(folder, Verdict.BY_HAND, reason)
        return True

    def lists(self, table: Table, key: str, scope: Scope, prefix: str) -> None:
        """Revocation lists, if httpd looked at them."""
        file = scope.last(f"{prefix}carevocationfile")
        folder = scope.last(f"{prefix}carevocationpath")
        check = scope.last(f"{prefix}carevocationcheck")
        paths = [self.resolve(file.value)] if file is not None else []
        if folder is not None:
            found = self.machine.files_in(self.resolve(folder.value))
            hashed = [each for each in found if _HASHED.search(each)]  # as httpd looks for them
            paths += hashed or [each for each in found if each.lower().endswith(_LISTS)]
        mode = [each.lower() for each in check.args] if check is not None else []
        if not paths or not mode or "none" in mode:
            self.report.say(check, Verdict.SAME, f"{key} is left out")
            reason = "httpd 2.4 looks at no list without SSLCARevocationCheck; to do so, set " + key
            for each in (file, folder):
                self.report.say(each, Verdict.BY_HAND, reason)
            if paths:
                table.off(key, paths, "not looked at by httpd without SSLCARevocationCheck")
                self.report.note(
                    f"{key} is commented out: httpd 2.4 looks at no list without"
                    " SSLCARevocationCheck, but httpd 2.2 did, so set it if you come from there"
                )
            return
        for each in (file, folder):
            self.report.say(each, Verdict.BETTER, f"{key}; renewed lists are used without a reload")
        # With one CA at most, the leaf is the whole chain.
        leaf = "leaf" in mode and table.values.get("max_chain_depth") != 1
        if leaf or "no_crl_for_cert_ok" in mode:
            table.put("crl", {"files": paths, "missing": "accept"}, origin(check))
            if "no_crl_for_cert_ok" not in mode:
                self.report.note(f"{key}: httpd refused who has no list; missing = accept admits")
            reason = 'crl.missing = "accept": every CA of the chain is looked up if it has a list'
            self.report.say(check, Verdict.BY_HAND, reason)
        else:
            table.put(key, paths, origin(file or folder))
            self.report.say(check, Verdict.SAME, "always so")


def origin(directive: Directive | None) -> str:
    """Where a key comes from, for its comment."""
    if directive is None:
        return ""
    file, line = directive.place
    return f"{file.rpartition('/')[2]}:{line}: {directive.text}"

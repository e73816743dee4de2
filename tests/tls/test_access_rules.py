"""`allow` and `deny`: which of the clients with a valid certificate a route lets in."""

import contextlib
import pickle
import time
from dataclasses import replace
from ipaddress import ip_address

import pytest
from cryptography import x509
from hypothesis import event, given, settings
from hypothesis import strategies as st

from relay.config.distinguished_name import parse_name
from relay.config.listener_model import Allow, Deny
from relay.tls.access_rules import compile_rules
from relay.tls.certificates.name_keys import key_of_name
from relay.tls.certificates.names import attributes_of, render
from relay.tls.certificates.revocation_fields import RevocationFields
from relay.tls.identity import admit
from tests.support.handshakes import (
    VERSIONS,
    begin_session,
    client_context,
    meet_client,
    route_of,
)
from tests.support.identities import ALICE
from tests.support.odd import (
    BMP,
    CN,
    OU,
    PRINTABLE,
    SAN,
    T61,
    UTF8,
    Odd,
    attribute,
    extension,
    integer,
    name,
    sequence,
    tlv,
    write_odd,
)

EMAIL, DNS, URI, IP = 0x81, 0x82, 0x86, 0x87
BITS = 3
AUTHORITY_KEY_ID = "2.5.29.35"
ISSUER = name(
    attribute("2.5.4.6", "DE", PRINTABLE),
    attribute("2.5.4.10", "Example, Inc."),
    attribute(CN, "Clients  CA"),
)
WHO = replace(
    ALICE,
    san_ip=(ip_address("10.1.2.3").packed, ip_address("2001:db8::7").packed),
    san_email=("Alice@Example.com",),
    issuer="CN=Clients  CA,O=Example\\, Inc.,C=DE",
    issuer_der=ISSUER,
    for_lists=RevocationFields(serial=b"\x00\xab\xcd", issuer_key_id=bytes.fromhex("0102ff")),
)

# Entries that match this certificate, in both tables.
MATCHING = [
    ("ip", "10.1.2.3"),
    ("ip", "10.0.0.0/8"),
    ("ip", "0.0.0.0/0"),
    ("ip", "2001:db8::/32"),
    ("ip", "2001:0db8::0007"),
    ("email", "Alice@example.COM"),
    ("email", "*@example.com"),
    ("serial", "ABCD"),
    ("serial", "ab:cd"),
    ("serial", "0000abcd"),
    ("issuer", "CN=Clients CA,O=Example\\, Inc.,C=DE"),
    ("issuer", "cn=CLIENTS CA, o=example\\2c inc., c=de"),
    ("issuer", "01:02:FF"),
    ("issuer", "0102ff"),
]
# Entries that do not.
OTHERS = [
    ("ip", "10.1.2.4"),
    ("ip", "10.1.2.0/31"),
    ("ip", "8000::/1"),
    ("ip", "::1"),
    ("email", "bob@example.com"),
    ("email", "Alice@mail.example.com"),
    ("email", "*@mail.example.com"),
    ("email", "*@ample.com"),
    ("serial", "AB"),
    ("serial", "-ABCD"),
    ("serial", "ABCD00"),
    ("issuer", "CN=Clients CA"),
    ("issuer", "C=DE,O=Example\\, Inc.,CN=Clients CA"),
    ("issuer", "CN=Clients CA,O=Example\\, Inc.,C=DE,DC=x"),
    ("issuer", "CN=Clients CA+O=Example\\, Inc.,C=DE"),
    ("issuer", "0102"),
    ("issuer", "0102ff00"),
]


def allows(who, *, allow=None, deny=None):
    return compile_rules(Allow(**(allow or {})), Deny(**(deny or {}))).allow(who)


@pytest.mark.parametrize(("kind", "text"), MATCHING)
def test_an_entry_matches_in_both_tables(kind, text):
    assert allows(WHO, allow={kind: (text,)})
    assert not allows(WHO, deny={kind: (text,)})


@pytest.mark.parametrize(("kind", "text"), OTHERS)
def test_an_entry_for_others_matches_in_no_table(kind, text):
    assert not allows(WHO, allow={kind: (text,)})
    assert allows(WHO, deny={kind: (text,)})


def test_deny_is_judged_first_and_alone_lets_the_others_in():
    bob = replace(WHO, cn=("bob",))
    lists = {"allow": {"san_dns": ("*.corp",)}, "deny": {"cn": ("alice",)}}
    assert not allows(WHO, **lists)
    assert allows(bob, **lists)
    assert allows(bob, deny=lists["deny"])
    assert not allows(replace(bob, san_dns=()), **lists)


# A name in a certificate, and an entry that is meant for it but matches only in deny.
SPELLINGS = [
    ("cn", "cn", "ALICE", "alice"),
    ("cn", "cn", "a  lice ", "a lice"),
    ("cn", "cn", "MÜLLER", "müller"),
    ("ou", "ou", "Ops", "ops"),
    ("email", "san_email", "ALICE@example.com", "alice@example.com"),
    ("email", "san_email", "@example.com", "*@example.com"),
    ("email", "san_email", "a@example.com.", "*@example.com"),
    ("san_dns", "san_dns", "a_b.corp", "*.corp"),
    ("san_dns", "san_dns", "*.corp", "*.corp"),
    ("san_dns", "san_dns", "alice.corp.", "alice.corp"),
    ("san_dns", "san_dns", ".corp", "*.corp"),
    ("san_uri", "san_uri", "SPIFFE://Corp/alice", "spiffe://corp/alice"),
    ("san_uri", "san_uri", "spiffe://corp/%61lice", "spiffe://corp/alice"),
    ("san_uri", "san_uri", "spiffe://corp/a%20b", "spiffe://corp/*"),
    ("san_uri", "san_uri", "spiffe://corp/a%2Fb", "spiffe://corp/*"),
    ("san_uri", "san_uri", "spiffe://corp/..", "spiffe://corp/*"),
    ("san_uri", "san_uri", "spiffe://corp/", "spiffe://corp/*"),
    ("san_uri", "san_uri", "spiffe://corp/web", "spiffe://corp/web*"),
    ("san_uri", "san_uri", "spiffe://corp/a?b#c", "spiffe://corp/**"),
]


@pytest.mark.parametrize(("kind", "field", "name_", "entry"), SPELLINGS)
def test_an_odd_spelling_does_not_avoid_deny(kind, field, name_, entry):
    who = replace(WHO, **{field: (name_,)})
    assert not allows(who, deny={kind: (entry,)})
    assert not allows(who, allow={kind: (entry,)})


def test_an_ipv4_address_written_as_ipv6_is_the_same():
    who = replace(WHO, san_ip=(ip_address("::ffff:10.9.9.9").packed,))
    assert allows(who, allow={"ip": ("10.9.9.9",)})
    assert not allows(who, deny={"ip": ("10.0.0.0/8",)})
    assert allows(who, deny={"ip": ("::/0",)})


@pytest.mark.parametrize("kind", ["cn", "ou", "san_dns", "san_uri", "ip", "email"])
def test_a_name_that_cannot_be_read_is_denied_and_never_allowed(kind):
    entry = {"ip": "192.0.2.1", "email": "x@example.net"}.get(kind, "other.example")
    who = replace(WHO, unreadable=frozenset((kind,)))
    assert not allows(who, deny={kind: (entry,)})
    assert not allows(who, allow={kind: (entry,)})
    assert allows(who, deny={"serial": ("01",)})
    assert allows(who, allow={"serial": ("ABCD",)})


def test_an_unknown_issuer_key_is_denied_and_never_allowed():
    who = replace(WHO, for_lists=RevocationFields(serial=b"\x01"))
    assert not allows(who, deny={"issuer": ("AB:CD",)})
    assert not allows(who, allow={"issuer": ("AB:CD",)})
    assert allows(who, deny={"issuer": ("CN=other",)})
    assert not allows(replace(who, issuer_der=b""), deny={"issuer": ("CN=other",)})


LABELS = st.text("abAB.-_*%/@ :1é", max_size=12)


@settings(max_examples=300)
@given(
    kind=st.sampled_from(["cn", "ou", "san_dns", "san_uri", "email"]),
    entry=LABELS | st.sampled_from(["*.a", "a*b", "**", "*/a", "a/**", "*@a.b", "a@a.b"]),
    name=LABELS,
)
def test_what_allow_would_match_deny_matches_too(kind, entry, name):
    """deny is never narrower than allow."""
    fields = {"email": "san_email"}
    who = replace(WHO, **{fields.get(kind, kind): (name,)})
    if allows(who, allow={kind: (entry,)}):
        event("matches")
        assert not allows(who, deny={kind: (entry,)})
    who = replace(who, **{fields.get(kind, kind): (entry,)})
    if allows(who, allow={kind: (entry,)}):
        event("equal")
        assert not allows(who, deny={kind: (entry,)})


SAID = [
    ({"allow": {"cn": ("bob",)}}, "no entry of allow matches; names in the certificate: alice, "),
    ({"allow": {"ip": ("::1",)}}, ", Alice@Example.com, 10.1.2.3, 2001:db8::7; SHA-256 ABAB"),
    ({"allow": {"ou": ("dev",)}}, "; OU ops; SHA-256 "),
    ({"allow": {"serial": ("01",)}}, "; serial 0A; SHA-256 "),
    (
        {"allow": {"issuer": ("CN=x",)}},
        "; issuer CN=Clients  CA,O=Example\\, Inc.,C=DE, key id 01:02:FF; SHA-256 ",
    ),
    ({"deny": {"san_dns": ("x", "*.corp")}}, 'deny.san_dns has "*.corp"; names in '),
    ({"deny": {"ip": ("10.0.0.0/8",)}}, 'deny.ip has "10.0.0.0/8"; names in '),
]


@pytest.mark.parametrize(("lists", "words"), SAID)
def test_a_refusal_says_which_entry_or_what_it_has(lists, words):
    rules = compile_rules(Allow(**lists.get("allow", {})), Deny(**lists.get("deny", {})))
    assert words in rules.why_not(WHO)


def test_a_refusal_names_what_cannot_be_judged():
    who = replace(WHO, unreadable=frozenset(("san_dns",)), for_lists=RevocationFields())
    rules = compile_rules(Allow(), Deny(san_dns=("x.corp",)))
    assert "has a name that cannot be read, so deny.san_dns cannot be" in rules.why_not(who)
    rules = compile_rules(Allow(), Deny(issuer=("AB",)))
    assert "does not say which key signed it, so deny.issuer" in rules.why_not(who)


def test_rules_can_be_sent_to_another_process():
    lists = {kind: (text,) for kind, text in MATCHING} | {"san_dns": ("*.x",), "san_uri": ("a:*",)}
    rules = compile_rules(Allow(**lists), Deny(cn=("bob",)))
    received = pickle.loads(pickle.dumps(rules))
    assert received == rules
    assert received.allow(WHO)


TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc", "Cf", "Zl", "Zp", "Co", "Cn", "Zs")))


@given(st.lists(st.tuples(st.sampled_from([CN, OU, "2.5.4.10"]), TEXT.filter(bool)), min_size=1))
def test_an_issuer_as_the_log_shows_it_is_an_entry(parts):
    """The text in the log, or that of cryptography, matches the certificate."""
    if sum(len(text) for _, text in parts) > 200 or any(text.strip() != text for _, text in parts):
        return
    der = name(*(attribute(kind, text) for kind, text in parts))
    shown = render(attributes_of(der))
    assert parse_name(shown) == key_of_name(der)
    if all(len(text.encode()) <= 64 for _, text in parts):
        built = x509.Name(
            [x509.NameAttribute(x509.ObjectIdentifier(kind), text) for kind, text in parts]
        )
        assert parse_name(built.rfc4514_string()) == key_of_name(built.public_bytes())


@given(st.text(max_size=60) | st.text(alphabet='CNO=,+\\ #a0;"', max_size=30))
def test_any_text_is_a_name_or_a_value_error(text):
    with contextlib.suppress(ValueError):
        assert parse_name(text)


def test_the_type_of_a_string_does_not_matter_in_an_issuer():
    texts = [("Müller", UTF8), ("Müller", BMP), ("Müller".encode("latin-1"), T61)]
    keys = {key_of_name(name(attribute(CN, text, tag))) for text, tag in texts}
    assert keys == {parse_name("CN=Müller")} == {parse_name("cn=M\\c3\\bcller")}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("S=Bavaria", "ST=Bavaria"),
        ("E=a@b", "emailAddress=A@B"),
        ("OID.2.5.4.3=a", "CN=a"),
        ("2.5.4.3=a", "cn = a "),
        ('CN=a\\,b\\;\\"c\\"', "CN=A\\2cB\\3b\\22C\\22"),
        ("CN=\\#1", "CN=\\231"),
        ("CN=a=b", "CN=a\\=b"),
    ],
)
def test_spellings_of_one_name_are_equal(one, other):
    assert parse_name(one) == parse_name(other)


def test_parts_with_several_values_match_in_any_order():
    both = [sequence(tlv(6, bytes.fromhex("550403")), tlv(12, b"a"))]
    both.append(sequence(tlv(6, bytes.fromhex("55040b")), tlv(12, b"b")))
    der = sequence(tlv(0x31, *both))
    assert key_of_name(der) == parse_name("CN=a+OU=b") == parse_name("OU=B+CN=A")
    assert key_of_name(der) != parse_name("CN=a,OU=b")


# Real handshakes: every kind of entry, full and resumed, in both versions.


@pytest.fixture(scope="module")
def files(pki, tmp_path_factory):
    """A certificate with a name of every kind."""
    names = sequence(
        tlv(EMAIL, b"alice@example.com"),
        tlv(DNS, b"alice.corp"),
        tlv(URI, b"spiffe://corp/alice"),
        tlv(IP, ip_address("10.1.2.3").packed),
    )
    odd = Odd(
        subject=name(attribute(OU, "ops"), attribute(CN, "alice")),
        serial=integer(0xABCDEF),
        san=extension(SAN, names),
        extensions=(extension(AUTHORITY_KEY_ID, sequence(tlv(0x80, key_id(pki)))),),
    )
    return write_odd(tmp_path_factory.mktemp("access"), "alice", odd, pki.authority)


def key_id(pki):
    """The CA's subjectKeyIdentifier."""
    extensions = pki.authority.certificate.extensions
    return extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest


KINDS = {
    "cn": ("alice", "bob"),
    "ou": ("ops", "dev"),
    "san_dns": ("*.corp", "*.other"),
    "san_uri": ("spiffe://corp/*", "spiffe://other/*"),
    "ip": ("10.1.0.0/16", "10.2.0.0/16"),
    "email": ("*@example.com", "*@example.net"),
    "issuer": ("CN=Test CA", "CN=Other CA"),
    "serial": ("AB:CD:EF", "AB:CD"),
}


@pytest.mark.parametrize("version", VERSIONS.values(), ids=VERSIONS)
@pytest.mark.parametrize("kind", [*KINDS, "key id"])
def test_every_kind_holds_in_full_and_resumed_handshakes(pki, files, version, kind):
    key = "issuer" if kind == "key id" else kind
    own, other = KINDS.get(kind) or (key_id(pki).hex(":"), "00" * 20)
    context = client_context(pki, files, version)
    for lists, reason in (
        ({"allow": Allow(**{key: (own,)})}, "done"),
        ({"allow": Allow(**{key: (other,)})}, "not_allowed"),
        ({"deny": Deny(**{key: (own,)})}, "not_allowed"),
        ({"deny": Deny(**{key: (other,)})}, "done"),
    ):
        route = route_of(pki, **lists)

        def check(who, route=route):
            return admit(who, route.trust, time.time())

        with meet_client(route, context, check=check) as meeting:
            assert meeting.reason == reason
        # Without a check the handshake succeeds; the rules must refuse the resumption.
        session = begin_session(route, context)
        with meet_client(route, context, session=session, check=check) as meeting:
            assert (meeting.reason, meeting.resumed) == (reason, True)


BROKEN = {
    "cn": Odd(subject=name(attribute(CN, b"\0bits", BITS))),
    "ou": Odd(subject=name(attribute(OU, "x" * 2100), attribute(CN, "a"))),
    "san_dns": Odd(san=extension(SAN, sequence(tlv(DNS, b"m\xfcller.corp")))),
    "san_uri": Odd(san=extension(SAN, sequence(tlv(URI, b"a:" + b"x" * 2100)))),
    "ip": Odd(san=extension(SAN, sequence(tlv(IP, b"12345")))),
    "email": Odd(san=extension(SAN, sequence(tlv(EMAIL, b"m\xfc@example.com")))),
}
ENTRY = {"ip": "192.0.2.1", "email": "x@example.net"}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_certificate_with_an_unreadable_name_is_denied(pki, tmp_path, kind):
    """OpenSSL accepts these certificates."""
    files = write_odd(tmp_path, "odd", BROKEN[kind], pki.authority)
    for denied in BROKEN:
        route = route_of(pki, deny=Deny(**{denied: (ENTRY.get(denied, "other"),)}))
        with meet_client(
            route,
            client_context(pki, files),
            check=lambda who, route=route: admit(who, route.trust, time.time()),
        ) as met:
            assert met.reason == ("not_allowed" if denied == kind else "done")


@pytest.mark.parametrize(
    "spelled",
    [
        "RENÉE  SMITH",
        "Rene\u0301e Smith",
        "Renée\u00a0Smith",
        "Ren\u200bée\u2060 Smith",
        "Ren\u00adée \u202eSmith",
        "Renée\0 Smith",
        "\uff32\uff45née \U0001d412mith",
    ],
)
@pytest.mark.parametrize("kind", ["cn", "ou"])
def test_deny_compares_names_as_people_read_them(kind, spelled):
    who = replace(ALICE, **{kind: (spelled,)})
    for entry in ("Renée Smith", spelled):
        rules = compile_rules(Allow(), Deny(**{kind: (entry,)}))
        assert not rules.allow(who)
        assert rules.allow(replace(ALICE, **{kind: ("Renee Smith",)}))
    assert not compile_rules(Allow(**{kind: ("Renée Smith",)})).allow(who)

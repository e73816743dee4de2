"""The rules of `crl`, in routes and pools."""

import pytest

ROUTE, POOL = 'pool = "web"\n', "[pool.web]"
CASES = {
    "no source": ("{}", "crl", "names no list"),
    "an empty list": ("{files = []}", "crl", "names no list"),
    "a file twice": ('{files = ["a", "b", "a"]}', "crl.files[2]", "is already in the list"),
    "https": ('{urls = ["https://a.example/b"]}', "crl.urls[0]", "fetched by http only"),
    "ldap": ('{urls = ["http://a.b/c", "ldap://a/b"]}', "crl.urls[1]", "start with http://"),
    "a URL twice": ('{urls = ["http://a.b", "http://a.b"]}', "crl.urls[1]", "already in the list"),
    "a URL for hosts": (
        '{urls = ["http://a.b"], hosts = ["http://c.d"]}',
        "crl.hosts[0]",
        "without http://",
    ),
    "a port for hosts": (
        '{urls = ["http://a.b"], hosts = ["c.d:80"]}',
        "crl.hosts[0]",
        "without a port",
    ),
    "any host": ("{from_certificates = true}", "crl.hosts", "names the URLs"),
    "hosts for nothing": ('{files = ["a"], hosts = ["b"]}', "crl.hosts", "nothing is fetched"),
    "grace for nothing": ('{files = ["a"], grace_s = 9}', "crl.grace_s", 'expired = "grace"'),
    "a wrong word": ('{files = ["a"], missing = "ignore"}', "crl.missing", '"refuse" or "accept"'),
    "no grace": ('{files = ["a"], expired = "grace", grace_s = 0}', "crl.grace_s", "above 0"),
    "a misspelt key": ('{file = ["a"]}', "crl.file", "did you mean files?"),
    "a list": ('["a"]', "crl", "must be a table"),
    "a string": ('{files = "a"}', "crl.files", 'write ["a"]'),
}


@pytest.mark.parametrize(
    ("edited", "place"), [(ROUTE, "listener.https.route[0]"), (POOL, "pool.web")]
)
@pytest.mark.parametrize(("table", "key", "words"), CASES.values(), ids=CASES)
def test_a_wrong_crl_is_one_problem_at_its_key_path(problems, edited, place, table, key, words):
    [found] = problems((edited, f"{edited.strip()}\ncrl = {table}\n"))
    assert found.where == f"{place}.{key}"
    assert words in f"{found.what}; {found.remedy}"


@pytest.mark.parametrize(
    ("edited", "short"),
    [(ROUTE, "client_crl"), (POOL, "backend_crl")],
)
def test_the_short_form_beside_the_table_is_refused(problems, edited, short):
    text = f'{edited.strip()}\n{short} = ["a"]\ncrl = {{files = ["b"]}}\n'
    [found] = problems((edited, text))
    assert found.where.endswith(f".{short}")
    assert "move its files to" in found.remedy


@pytest.mark.parametrize(
    ("edited", "short"),
    [(ROUTE, "client_crl"), (POOL, "backend_crl")],
)
def test_a_file_twice_in_the_short_form_is_refused(problems, edited, short):
    [found] = problems((edited, f'{edited.strip()}\n{short} = ["a", "a"]\n'))
    assert found.where.endswith(f".{short}[1]")


def test_crl_of_a_passthrough_route_is_refused(problems):
    found = problems((ROUTE, f'{ROUTE}mode = "passthrough"\ncrl = {{files = ["a"]}}\n'))
    assert any(each.where.endswith(".crl") and "passthrough" in each.what for each in found)


def test_the_short_forms_stand_for_files(load):
    config = load(
        (ROUTE, f'{ROUTE}client_crl = ["a.crl"]\n'), (POOL, f'{POOL}\nbackend_crl = ["b.crl"]')
    )
    [route, _] = config.listener[0].route
    assert [each.name for each in route.revocation.files] == ["a.crl"]
    assert [each.name for each in config.pool["web"].revocation.files] == ["b.crl"]
    assert route.revocation.files[0].is_absolute()
    assert config.pool["rest"].revocation is None

"""The balancer-manager page in a real browser."""

from __future__ import annotations

import pytest

from tests.support.backend import TlsBackend
from tests.support.browser import open_browser, prefer, resize
from tests.support.gateway import Gateway, wait_until
from tests.support.operator import Operator
from tests.support.tables import listener_table, pool_table, route_table


@pytest.fixture(scope="module")
def browser():
    with open_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def gateway(pki, browser):
    backends = [TlsBackend(pki.backend.certificate, pki.backend.key, pki.ca) for _ in range(2)]
    body = listener_table(
        route_table(pki, sni=["other.example.com"], pool="other"), route_table(pki)
    )
    body += pool_table(pki, [one.address for one in backends]) + pool_table(
        pki, ["127.0.0.1:1"], name="other"
    )
    with Gateway(body, relay={"workers": 1}, admin={}) as gateway:
        yield gateway
    for one in backends:
        one.close()


@pytest.fixture
def operator(gateway):
    operator = Operator(gateway.endpoints["admin"])
    yield operator
    for member in ("main/w1", "main/w2", "other/w1"):
        operator.change(member, {"mode": "none"})


@pytest.fixture
def page(browser, gateway, operator):
    resize(browser, 1400, 900)
    prefer(browser, "light")
    browser.get_log("browser")
    browser.get(f"{gateway.admin_url}/balancer-manager")
    browser.execute_script("window.loadedOnce = true")
    yield Page(browser)
    # Whatever a test did, the page was not reloaded, and the console has no errors.
    assert browser.execute_script("return window.loadedOnce") is True
    assert [
        entry for entry in browser.get_log("browser") if "403 (Forbidden)" not in entry["message"]
    ] == []


class Page:
    def __init__(self, browser):
        self.browser = browser

    def one(self, selector):
        return self.browser.find_element("css selector", selector)

    def all(self, selector):
        return self.browser.find_elements("css selector", selector)

    def text(self, selector):
        return self.browser.execute_script(
            "const one = document.querySelector(arguments[0]); return one ? one.innerText : ''",
            selector,
        )

    def row(self, key, inside=""):
        return f'[data-key="{key}"] {inside}'

    def open(self, key):
        self.one(self.row(key, "summary")).click()

    def press(self, key, button):
        self.one(self.row(key, f'button[value="{button}"]')).click()

    def wait_for(self, selector, text):
        wait_until(
            f"{selector} shows {text}",
            lambda: text in self.text(selector),
            detail=lambda: self.text("body"),
        )


def test_a_click_changes_a_backend_and_another_changes_it_back(page, operator):
    page.open("main/w1")
    page.press("main/w1", "drain")
    page.wait_for("#toasts", "main/w1: drain")
    page.wait_for(page.row("main/w1", "[data-cell=status]"), "draining")
    page.wait_for(page.row("main/w1", "[data-cell=status]"), "overridden")
    assert operator.backend()["mode"] == "drain"
    assert page.one(page.row("main/w1", "details")).get_attribute("open") is None
    page.open("main/w1")
    assert (
        page.one(page.row("main/w1", 'button[value="drain"]')).get_attribute("aria-pressed")
        == "true"
    )
    page.one(page.row("main/w1", "button.clear")).click()
    page.wait_for(page.row("main/w1", "[data-cell=status]"), "ok")
    assert operator.backend()["overridden"] is False


def test_weight_and_duration_are_set_with_the_keyboard_alone(page, operator):
    from selenium.webdriver.common.keys import Keys

    summary = page.one(page.row("main/w2", "summary"))
    page.browser.execute_script("arguments[0].focus()", summary)
    summary.send_keys(Keys.ENTER)
    focused = page.browser.switch_to.active_element
    focused.send_keys(Keys.TAB)
    page.browser.switch_to.active_element.send_keys("5")  # the select: "5 minutes"
    page.browser.switch_to.active_element.send_keys(Keys.TAB)
    page.browser.switch_to.active_element.send_keys(Keys.CONTROL, "a")
    page.browser.switch_to.active_element.send_keys("12", Keys.ENTER)
    page.wait_for(page.row("main/w2", "[data-cell=weight]"), "12")
    page.wait_for(page.row("main/w2", "[data-cell=status]"), "ends in 5 min")
    assert (operator.backend("w2")["weight"], operator.backend("w2")["mode"]) == (12, "enabled")


def test_changes_by_others_appear_and_leave_an_open_form_as_it_is(page, operator):
    page.open("main/w1")
    weight = page.one(page.row("main/w1", "input[name=weight]"))
    weight.clear()
    weight.send_keys("77")
    operator.change("main/w1", {"mode": "disabled"})
    page.wait_for(page.row("main/w1", "[data-cell=status]"), "disabled")
    assert weight.get_attribute("value") == "77"
    assert page.one(page.row("main/w1", "details")).get_attribute("open") is not None
    assert (
        page.one(page.row("main/w1", 'button[value="disabled"]')).get_attribute("aria-pressed")
        == "true"
    )


def test_a_page_without_the_token_changes_nothing_and_says_why(page, operator):
    page.open("main/w1")
    page.browser.execute_script("document.getElementById('pools').dataset.csrf = '1.0'")
    page.press("main/w1", "disabled")
    page.wait_for("#toasts .failed", "no valid CSRF token")
    assert operator.backend()["mode"] == "enabled"
    # The next update of the page brings a valid token.
    page.press("main/w1", "disabled")
    page.wait_for(page.row("main/w1", "[data-cell=status]"), "disabled")


def test_the_filter_shows_what_fits(page):
    page.one("body").send_keys("/")
    page.browser.switch_to.active_element.send_keys("other w1")
    wait_until(
        "one row is left",
        lambda: (
            [row.get_attribute("data-key") for row in page.all("[data-key]") if row.is_displayed()]
            == ["other/w1"]
        ),
    )
    page.one("#filter").send_keys(" nothing like this")
    assert page.one("#nothing").is_displayed()
    assert not [row for row in page.all("[data-pool]") if row.is_displayed()]
    page.one("#filter").clear()
    page.one("#filter").send_keys(" ")
    assert len([row for row in page.all("[data-key]") if row.is_displayed()]) == 3


def test_escape_and_a_click_elsewhere_close_the_form(page):
    from selenium.webdriver.common.keys import Keys

    for leave in (
        lambda: page.browser.switch_to.active_element.send_keys(Keys.ESCAPE),
        lambda: page.one("h1").click(),
    ):
        page.open("main/w1")
        assert page.one(page.row("main/w1", "form")).is_displayed()
        leave()
        assert not page.one(page.row("main/w1", "form")).is_displayed()


@pytest.mark.parametrize("width", [320, 390, 768, 1024, 1400])
def test_it_never_scrolls_sideways(page, operator, width):
    operator.change("main/w1", {"mode": "drain", "duration_s": 600})
    resize(page.browser, width, 800, phone=width < 500)
    page.wait_for(page.row("main/w1", "[data-cell=status]"), "draining")
    for opened in (False, True):
        if opened:
            page.open("main/w1")
        root, inner = page.browser.execute_script(
            "return [document.documentElement.scrollWidth, innerWidth]"
        )
        assert root <= inner
        assert (
            page.browser.execute_script(
                "return [...document.querySelectorAll('.pool *')]"
                ".filter(one => !one.closest('thead'))"
                ".filter(one => one.getBoundingClientRect().right > innerWidth + 1)"
                ".map(one => one.outerHTML)",
            )
            == []
        )


LOWEST_CONTRAST = """
const parts = (colour) => colour.match(/[0-9.]+/g).slice(0, 3).map(Number);
const linear = (c) => c <= .03928 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4;
const light = (colour) => parts(colour).map(c => linear(c / 255))
  .reduce((sum, c, i) => sum + c * [.2126, .7152, .0722][i], 0);
const behind = (one) => {
  while (one && /rgba\\(0, 0, 0, 0\\)/.test(getComputedStyle(one).backgroundColor)) {
    one = one.parentElement;
  }
  return getComputedStyle(one || document.body).backgroundColor;
};
const texts = '.badge, .route, .small, .soft, .meta, thead th, summary, footer p, #live';
return [...document.querySelectorAll(texts)].map(one => {
  const pair = [light(getComputedStyle(one).color), light(behind(one))].sort((a, b) => b - a);
  return [(pair[0] + .05) / (pair[1] + .05), one.className || one.tagName];
}).sort((a, b) => a[0] - b[0])[0];
"""


def test_light_and_dark_follow_the_user_and_can_be_read_in_both(page):
    def contrast():
        return page.browser.execute_script(LOWEST_CONTRAST)

    grounds = []
    for scheme in ("light", "dark"):
        prefer(page.browser, scheme)
        grounds.append(
            page.browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        )
        lowest, where = contrast()
        assert lowest >= 4.5, (scheme, where)  # WCAG 2.2, 1.4.3
    assert grounds[0] != grounds[1]


def test_the_page_says_that_the_relay_does_not_answer_and_recovers(page, gateway, operator):
    page.browser.execute_cdp_cmd("Network.enable", {})
    offline = {"offline": True, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    page.browser.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
    page.wait_for("#live", "does not answer")
    page.browser.execute_cdp_cmd("Network.emulateNetworkConditions", {**offline, "offline": False})
    wait_until("it is live again", lambda: page.text("#live").strip() == "live")
    page.browser.get_log("browser")  # the messages so far

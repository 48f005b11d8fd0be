"""The report in a browser: headless Chromium, driven by selenium. Skipped where there is no Chromium."""

import json
import shutil

import pytest
from conftest import MARKUP

from pipeline.files.layout import Run

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: pip install .[web]")
NEEDED = ("chromium", "chromedriver")  # Debian's packages chromium and chromium-driver
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(map(shutil.which, NEEDED)), reason="no Chromium: apt-get install chromium chromium-driver"
    ),
]
WIDTHS = {"phone": 390, "small phone": 320, "desk": 1280}


@pytest.fixture(scope="module")
def browser():
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in ("--headless=new", "--no-sandbox", "--disable-background-networking"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    yield driver
    driver.quit()


@pytest.fixture(params=["report", "index"])
def page(request, marked):
    return Run(marked).index_page if request.param == "index" else round_page(marked)


def round_page(run_dir):
    return Run(run_dir).round(0).report


def look(browser, page, width=1280, scheme="light"):
    """Opens a page at a width, with a colour scheme."""
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get(page.as_uri())


def test_no_errors_and_nothing_from_the_network(browser, page):
    browser.get_log("browser"), browser.get_log("performance")
    look(browser, page)
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert page.as_uri() in asked
    assert not [url for url in asked if not url.startswith(("data:", "file:"))]
    assert [url for url in asked if url.startswith("file:")] == [page.as_uri()]


def test_an_error_would_be_seen(browser, tmp_path):
    """That the test above can fail: a page with a missing picture, a script and an address."""
    page = tmp_path / "bad.html"
    page.write_text("<img src=missing.png><script>nothing.there()</script><img src=http://127.0.0.1:9/x.png>")
    browser.get_log("browser"), browser.get_log("performance")
    look(browser, page)
    assert any("nothing is not defined" in entry["message"] for entry in browser.get_log("browser"))
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert "http://127.0.0.1:9/x.png" in asked
    assert broken_pictures(browser) == 2


def broken_pictures(browser):
    return browser.execute_script("return [...document.images].filter(i => !i.complete || !i.naturalWidth).length")


def test_every_picture_loads_and_has_words(browser, marked):
    look(browser, round_page(marked))
    assert browser.execute_script("return document.images.length") > 100
    assert broken_pictures(browser) == 0
    assert browser.execute_script("return [...document.images].filter(i => !i.alt).length") == 0
    charts = "return [...document.querySelectorAll('svg')].filter(s => !s.getAttribute('aria-label')).length"
    assert browser.execute_script(charts) == 0


def test_markup_is_read_as_text(browser, marked):
    look(browser, round_page(marked))
    assert browser.execute_script("return document.scripts.length") == 0
    assert MARKUP in browser.execute_script("return document.querySelector('.card h4').textContent")
    assert MARKUP in browser.execute_script("return document.querySelector('.thumbs .id').textContent")
    assert browser.execute_script("return document.images[0].alt").count(MARKUP) == 2


@pytest.mark.parametrize("device", WIDTHS)
def test_no_page_is_wider_than_the_screen(browser, page, device):
    look(browser, page, WIDTHS[device])
    wide = browser.execute_script(
        "return [...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1"
        " && !e.closest('.scroll, nav.contents, .plot')).map(e => e.outerHTML.slice(0, 200))"
    )
    assert wide == []
    assert browser.execute_script("return document.documentElement.scrollWidth") <= WIDTHS[device]


# Contrast of WCAG 2.2, 1.4.3: 4.5 for text. A colour-mix() comes back as color(srgb r g b).
CONTRAST = """
const parse = text => {
  const n = text.match(/[\\d.]+/g).map(Number), unit = text.startsWith('color(') ? 1 : 255;
  return [n[0] / unit, n[1] / unit, n[2] / unit, n.length > 3 ? n[3] : 1];
};
const light = ([r, g, b]) => {
  const f = v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  return .2126 * f(r) + .7152 * f(g) + .0722 * f(b);
};
const behind = element => {
  for (let e = element; e; e = e.parentElement) {
    const colour = parse(getComputedStyle(e).backgroundColor);
    if (colour[3] == 1) return colour;
  }
};
const low = [];
for (const e of document.querySelectorAll('body *')) {
  if (![...e.childNodes].some(n => n.nodeType == 3 && n.textContent.trim()) || e.closest('svg')) continue;
  const [a, b] = [light(parse(getComputedStyle(e).color)), light(behind(e))];
  const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
  if (ratio < 4.5) low.push(ratio.toFixed(2) + ' ' + e.outerHTML.slice(0, 150));
}
return [low, getComputedStyle(document.body).backgroundColor];
"""


def test_words_can_be_read_by_day_and_by_night(browser, page):
    grounds = []
    for scheme in ("light", "dark"):
        look(browser, page, scheme=scheme)
        low, ground = browser.execute_script(CONTRAST)
        assert low == []
        grounds.append(ground)
    assert grounds[0] != grounds[1]

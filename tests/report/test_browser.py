"""The page in a browser: no error, no request, the map by pointer and keyboard."""

import contextlib
import json
import os
import shutil
import signal
import threading
import time

import pytest

webdriver = pytest.importorskip("selenium.webdriver")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SECONDS = 30
DRIVER = shutil.which("chromedriver")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
    *("--no-first-run", "--disable-background-networking", "--disable-sync"),
    *("--disable-component-update", "--hide-scrollbars"),
)
pytestmark = pytest.mark.skipif(
    not CHROMIUM or not DRIVER, reason="needs chromium and chromedriver"
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Returns a headless Chromium that records messages and requests."""
    from selenium.common.exceptions import WebDriverException

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in FLAGS:
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    options.set_capability(
        "goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"}
    )
    service = webdriver.ChromeService(DRIVER, popen_kw={"start_new_session": True})
    try:
        driver = webdriver.Chrome(options=options, service=service)
    except WebDriverException as error:
        service.stop()
        pytest.skip(f"Chromium does not start here: {str(error).splitlines()[0]}")
    driver.set_page_load_timeout(SECONDS)
    driver.set_script_timeout(SECONDS)
    yield driver
    # `quit` can wait for ever for processes that a container does not reap.
    closing = threading.Thread(target=driver.quit, daemon=True)
    closing.start()
    closing.join(10)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(service.process.pid, signal.SIGKILL)


def opened(browser, path, width=1280, dark=False):
    """Opens the page at a width; returns when the map is drawn."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1}
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {**size, "mobile": width < 600}
    )
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    browser.get(path.as_uri())
    wait(
        browser,
        "return !!document.getElementById('map').shadowRoot || "
        "document.getElementById('map').children.length > 0",
    )


def wait(browser, script, *arguments, seconds=SECONDS):
    """Returns the value of a script as soon as it is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = browser.execute_script(script, *arguments)
        if value:
            return value
        time.sleep(0.1)
    raise AssertionError(f"not true within {seconds} s: {script}")


def test_no_error_no_request_and_no_injected_script(browser, hostile_page):
    opened(browser, hostile_page)
    messages = browser.get_log("browser")
    assert not [m for m in messages if m["level"] != "INFO"], messages
    events = [
        json.loads(e["message"])["message"] for e in browser.get_log("performance")
    ]
    addresses = [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
        # Chromium's own first page asks for its own files.
        and not event["params"]["documentURL"].startswith("chrome:")
    ]
    assert hostile_page.as_uri() in addresses
    assert all(a.startswith("data:") or a == hostile_page.as_uri() for a in addresses)
    assert browser.execute_script("return window.hacked") is None


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_fits_its_width(browser, hostile_page, width):
    opened(browser, hostile_page, width)
    wide = browser.execute_script("return document.documentElement.scrollWidth")
    assert wide <= width


@pytest.mark.parametrize("dark", [False, True])
def test_text_has_contrast(browser, hostile_page, dark):
    opened(browser, hostile_page, dark=dark)
    ratios = browser.execute_script(CONTRAST)
    assert len(ratios) > 50
    poor = [entry for entry in ratios if entry[0] < 4.5]
    assert not poor, poor[:5]


# The contrast of every text with the nearest background behind it (WCAG 2.2, 1.4.3).
CONTRAST = """
const parts = (color) => color.match(/[\\d.]+/g).map(Number);
const light = (color) => parts(color).slice(0, 3).map((v) => v / 255).map(
  (v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4
).reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const found = [];
const texts = "p, th, dt, dd, a, h1, h2, h3, h4, code, label, figcaption";
for (const element of document.querySelectorAll(texts)) {
  if (!element.textContent.trim()) continue;
  if (element.closest("#map, details, .matrix")) continue;
  let behind = element;
  const solid = (e) => parts(getComputedStyle(e).backgroundColor)[3] !== 0;
  while (behind.parentElement && !solid(behind)) behind = behind.parentElement;
  const a = light(getComputedStyle(element).color);
  const b = light(getComputedStyle(behind).backgroundColor);
  const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  found.push([ratio, element.textContent.slice(0, 40)]);
}
return found;
"""


def test_the_arrow_keys_reach_the_images_of_the_map(browser, hostile_page):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    opened(browser, hostile_page)
    box = browser.find_element(By.ID, "map")
    browser.execute_script("arguments[0].focus()", box)
    seen = set()
    for key in (Keys.ARROW_LEFT, Keys.ARROW_LEFT, Keys.ARROW_UP, Keys.ARROW_RIGHT):
        browser.switch_to.active_element.send_keys(key)
        text = browser.find_element(By.ID, "selected").text
        assert "image " in text
        seen.add(text)
    assert len(seen) > 1


def test_everything_that_can_be_operated_is_reached_by_tab(browser, hostile_page):
    from selenium.webdriver.common.keys import Keys

    opened(browser, hostile_page)
    wanted = browser.execute_script(
        "return [...document.querySelectorAll('a, input, summary, pre, .scroll, #map')]"
        ".map((e, i) => (e.dataset.place = String(i)))"
    )
    reached = set()
    for _ in range(2 * len(wanted) + 40):
        browser.switch_to.active_element.send_keys(Keys.TAB)
        reached.add(
            browser.execute_script("return document.activeElement.dataset.place ?? ''")
        )
    assert set(wanted) <= reached


def test_the_tooltip_of_the_map_shows_a_thumbnail(browser, hostile_page):
    opened(browser, hostile_page)
    # The place of a mark on the screen, from Bokeh's own scales.
    x, y = wait(browser, PLACE)
    for step in range(3):
        browser.execute_cdp_cmd(
            "Input.dispatchMouseEvent",
            {"type": "mouseMoved", "x": x + step - 2, "y": y},
        )
        time.sleep(0.1)
    image, width = wait(browser, TOOLTIP)
    assert image.startswith('url("data:image/jpeg;base64,') and width == "64px"


PLACE = """
document.getElementById("map").scrollIntoView({block: "center", behavior: "instant"});
const index = Bokeh.index;
const view = index.roots ? index.roots[0] : Object.values(index)[0];
const frame = view.frame ?? [...view.child_views][0].frame;
const renderer = view.model.renderers.find((r) => r.name === "group-0");
const data = renderer.data_source.data;
const find = (root) => {
  for (const e of root.querySelectorAll("*")) {
    if (e.tagName === "CANVAS") return e;
    const inner = e.shadowRoot && find(e.shadowRoot);
    if (inner) return inner;
  }
};
const canvas = find(document.getElementById("map")).getBoundingClientRect();
if (!canvas.width) return null;
const x = frame.x_scale.compute(data.x[0]), y = frame.y_scale.compute(data.y[0]);
return [canvas.left + x, canvas.top + y];
"""
TOOLTIP = """
const find = (root) => {
  for (const e of root.querySelectorAll("*")) {
    if (e.classList.contains("map-thumbnail")) return e;
    const inner = e.shadowRoot && find(e.shadowRoot);
    if (inner) return inner;
  }
};
const found = find(document);
if (!found) return null;
const style = getComputedStyle(found);
return [style.backgroundImage, style.width];
"""


def test_a_group_can_be_hidden(browser, hostile_page):
    from selenium.webdriver.common.by import By

    opened(browser, hostile_page)
    boxes = browser.find_elements(By.CSS_SELECTOR, "[data-group]")
    assert len(boxes) == 3
    visible = (
        "const index = Bokeh.index; "
        "const view = index.roots ? index.roots[0] : Object.values(index)[0]; "
        "return view.model.renderers.filter("
        "(r) => (r.name ?? '').startsWith('group-')).map((r) => r.visible)"
    )
    assert wait(browser, visible) == [True, True, True]
    browser.execute_script("arguments[0].click()", boxes[1])
    assert browser.execute_script(visible) == [True, False, True]

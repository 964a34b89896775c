"""The page in a browser: a picture is put in, a region drawn and named, a question asked, the answer read."""

import base64
import importlib.resources
import json
import re
import shutil

import numpy as np
import pytest

from spatialllm_jax.data import images
from spatialllm_jax.questions import wording
from spatialllm_jax.questions.types import SPATIAL_TYPES
from tests.serving.running import NAME, asking, data_url, png, post, serving, until

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")


def test_the_page_loads_nothing_and_knows_the_server(server):
    template = (importlib.resources.files("spatialllm_jax.serving") / "page.html").read_text()
    assert not re.search(r"(src|href)=[\"']|@import|url\(|https?:", template)
    import urllib.request

    with urllib.request.urlopen(server.url) as response:
        page, policy = response.read().decode(), response.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "__SETTINGS__" not in page
    settings = json.loads(re.search(r"const settings = (.*);", page)[1])
    assert settings["model"] == "tiny" and [form["type"] for form in settings["forms"]] == list(SPATIAL_TYPES)
    assert settings["colours"] == [list(colour) for colour in images.REGION_COLOURS]


@pytest.fixture(scope="module")
def browser():
    if BROWSER is None or DRIVER is None:
        pytest.skip("no chromium and chromedriver on this machine (apt-get install chromium chromium-driver)")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage",
                 "--disable-background-networking", "--window-size=1200,1000"):
        options.add_argument(flag)
    found = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield found
    found.quit()


@pytest.fixture
def page(browser, server, tmp_path):
    from selenium.webdriver.common.by import By

    data = png(3, (150, 200))
    (tmp_path / "picture.png").write_bytes(data)
    browser.get(server.url)
    browser.find_element(By.ID, "file").send_keys(str(tmp_path / "picture.png"))
    until(lambda: browser.find_element(By.ID, "photo").is_displayed()
          and browser.execute_script("return document.getElementById('photo').naturalWidth") == 200)
    return Page(browser, data)


class Page:
    """What a test does on the page."""

    def __init__(self, browser, data):
        self.browser, self.data = browser, data

    def find(self, selector):
        from selenium.webdriver.common.by import By

        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector):
        found = self.find(selector)
        assert len(found) == 1, selector
        return found[0]

    def text(self, selector):
        return self.one(selector).get_property("textContent")

    def draw(self, x1, y1, x2, y2, kind="mouse"):
        """Drags from one place of the photo, in shares of its sides, to another."""
        from selenium.webdriver.common.action_chains import ActionChains
        from selenium.webdriver.common.actions.action_builder import ActionBuilder
        from selenium.webdriver.common.actions.pointer_input import PointerInput

        photo = self.one("#photo")
        self.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", photo)
        width, height = photo.size["width"], photo.size["height"]
        actions = ActionChains(self.browser, duration=50)
        actions.w3c_actions = ActionBuilder(self.browser, mouse=PointerInput(kind, kind), duration=50)
        pointer = actions.w3c_actions.pointer_action

        def to(x, y):
            pointer.move_to(photo, round((x - 0.5) * width), round((y - 0.5) * height))

        to(x1, y1)
        pointer.pointer_down()
        to((x1 + x2) / 2, (y1 + y2) / 2)
        to(x2, y2)
        pointer.pointer_up()
        actions.perform()

    def boxes(self):
        return np.array(self.browser.execute_script("return regions.map(r => r.box)"))

    def ask(self, question=None):
        """Asks, waits, and returns (text, why it ended)."""
        before = len(self.find("#talk article"))
        if question is not None:
            self.one("#question").clear()
            self.one("#question").send_keys(question)
        self.one("#ask").click()
        until(lambda: len(self.find("#talk article")) > before and self.one("#ask").is_enabled()
              and self.find("#talk article")[0].get_dom_attribute("data-finish"))
        return self.browser.execute_script("return document.querySelector('#talk article .said').textContent")


@pytest.mark.parametrize("kind", ["mouse", "touch"])
def test_a_region_is_drawn_and_asked_about(page, kind):
    page.draw(0.1, 0.2, 0.6, 0.8, kind)
    np.testing.assert_allclose(page.boxes(), [[0.1, 0.2, 0.6, 0.8]], atol=0.02)
    page.one("#regions input").send_keys("cat")
    from selenium.webdriver.support.ui import Select

    Select(page.one("#kind")).select_by_value("facing_camera")
    question = page.one("#question").get_property("value")
    assert question == wording.FULL["facing_camera"][0][0].format(a="the cat in Region [0]")
    box = np.round(page.boxes()[0], 4).tolist()
    body = {"model": NAME, "messages": [asking(question, data_url(page.data))], "regions": [{"bbox": box}]}
    answer = post(page.browser.current_url.rstrip("/"), body)[2]["choices"][0]["message"]["content"]
    assert page.ask() == answer
    until(lambda: page.browser.execute_script("const i = document.querySelector('#talk article img');"
                                              "return i && [i.naturalWidth, i.naturalHeight]") == [168, 168])


def test_regions_by_keyboard(page):
    from selenium.webdriver.common.keys import Keys

    page.one("#add").send_keys(Keys.ENTER)
    first = page.boxes()
    region = page.browser.switch_to.active_element
    assert "Region 0" in region.get_dom_attribute("aria-label")
    region.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_DOWN)
    np.testing.assert_allclose(page.boxes() - first, [[0.02, 0.01, 0.02, 0.01]], atol=1e-9)
    region.send_keys(Keys.SHIFT, Keys.ARROW_LEFT)
    np.testing.assert_allclose(page.boxes() - first, [[0.02, 0.01, 0.01, 0.01]], atol=1e-9)
    page.one("#add").click()
    assert page.boxes().shape == (2, 4)
    page.browser.switch_to.active_element.send_keys(Keys.DELETE)
    page.find(".region")[0].send_keys(Keys.DELETE)
    assert page.boxes().size == 0 and not page.find("#regions li")


def test_forms_say_what_is_missing_and_options_are_scored(page):
    from selenium.webdriver.support.ui import Select

    Select(page.one("#kind")).select_by_value("closer_to_camera")
    assert "draw 2 more" in page.text("#status")
    page.draw(0.1, 0.1, 0.4, 0.4)
    page.draw(0.5, 0.5, 0.9, 0.9)
    assert page.text("#status") == "" and "Region [0] or the object in Region [1]" in page.one(
        "#question").get_property("value")
    page.one("#options").send_keys("cat\ndog")
    assert page.ask() in ("cat", "dog")
    assert [bar.get_property("textContent") for bar in page.find("#talk article .bar span")] == ["cat", "dog"]


def test_on_a_phone_the_answer_is_in_sight(browser, page):
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
        "width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True})
    try:
        page.draw(0.1, 0.2, 0.6, 0.8, "touch")
        page.ask("What is this?")
        top, bottom, height, width = browser.execute_script(
            "const box = document.querySelector('#talk article .said').getBoundingClientRect();"
            "return [box.top, box.bottom, innerHeight, document.documentElement.scrollWidth]")
        assert 0 <= top < bottom <= height == 844 and width == 390
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_busy_and_gone_are_said_plainly(browser, page, worker, server):
    service = server.service
    service.under_way += service.most
    try:
        page.one("#question").send_keys("What is this?")
        page.one("#ask").click()
        until(lambda: "The server is busy" in page.text("#status"))
    finally:
        service.under_way -= service.most
    with serving(worker) as other:
        browser.get(other.url)
        until(lambda: page.text("#health") == "ready")
    page.one("#question").send_keys("What is this?")
    page.one("#ask").click()
    until(lambda: "The server is gone" in page.text("#status") and page.text("#health") == "the server is gone")
    assert not page.find("#talk article")


def test_pictures_shown_are_the_servers(page):
    page.draw(0.1, 0.2, 0.6, 0.8)
    page.ask("What is this?")
    box = np.round(page.boxes()[0], 4).tolist()
    url = "data:image/png;base64," + base64.b64encode(page.data).decode()
    expected = post(page.browser.current_url.rstrip("/"), {"image": url, "regions": [{"bbox": box}]}, "/v1/marked")[2]
    until(lambda: page.browser.execute_script("const i = document.querySelector('#talk article img');"
                                              "return i !== null && i.complete && i.naturalWidth > 0"))
    shown = page.browser.execute_script(
        "const i = document.querySelector('#talk article img'), c = document.createElement('canvas');"
        "c.width = i.naturalWidth; c.height = i.naturalHeight; c.getContext('2d').drawImage(i, 0, 0);"
        "return c.toDataURL('image/png').split(',')[1]")
    np.testing.assert_array_equal(images.decode(base64.b64decode(shown)), images.decode(expected))

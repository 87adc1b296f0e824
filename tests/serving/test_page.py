"""The page in a real headless Chromium: what a person does, sees, and reads when something is wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

sync_api = pytest.importorskip("playwright.sync_api")
from axe_playwright_python.sync_playwright import Axe  # noqa: E402
from playwright.sync_api import Browser, Locator, Page, expect  # noqa: E402

from deeprec.config import DEFAULT_PREFERENCE_WEIGHT  # noqa: E402
from deeprec.data.catalog import ItemId  # noqa: E402
from deeprec.serving.service import Service  # noqa: E402
from serving.conftest import PROMPT_DEFAULTS, SECONDS, Site, serve  # noqa: E402
from serving.test_any_id import AWKWARD, TITLES, USERS, history_of  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt install chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, site: Site) -> Iterator[Page]:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on(
        "request",
        lambda request: wrong.append(request.url) if not request.url.startswith((site.url, "data:", "blob:")) else None,
    )
    page.goto(site.url)
    expect(page.locator("#history li")).not_to_have_count(0)
    yield page
    page.close()
    assert not wrong, "the page raised an error or asked another host"


def turns(page: Page) -> Any:
    return page.locator(".card.turn")


def test_two_clicks_lead_to_an_exploration(page: Page) -> None:
    page.get_by_role("button", name="Explore", exact=True).click()
    expect(turns(page).nth(1)).to_be_visible()
    ranking = page.locator(".card.ranking")
    expect(ranking.locator(".ranked-items li")).to_have_count(10)
    expect(ranking.locator(".ranked-items li").first).to_contain_text(re.compile(r"found in call \d: "))
    label = page.locator("#map").get_attribute("aria-label") or ""
    numbers = [int(number) for number in re.findall(r"\d+", label)]
    assert numbers[0] == 40
    assert all(number > 0 for number in numbers)
    expect(page.locator("#status")).to_contain_text("ranked 10 items")


def press_tab_to(page: Page, target: Locator) -> None:
    """As a person with only a keyboard does; the focus must be visible."""
    for _ in range(100):
        page.keyboard.press("Tab")
        if target.evaluate("element => element === document.activeElement"):
            assert target.evaluate("element => element.matches(':focus-visible')")
            return
    pytest.fail("Tab does not lead there")


def test_everything_works_by_keyboard_alone(page: Page) -> None:
    keyboard = page.keyboard
    press_tab_to(page, page.locator("#history button").first)
    while page.locator("#history li").count():
        keyboard.press("Enter")  # the focus goes to the search
        expect(page.get_by_role("combobox", name="Add a title")).to_be_focused()
        if page.locator("#history li").count():
            keyboard.press("Shift+Tab")
    expect(page.get_by_role("button", name="Explore", exact=True)).to_be_disabled()
    for typed in ("flm 12", "film 3 (1973)"):
        keyboard.type(typed)
        expect(page.get_by_role("option").first).to_be_visible()
        keyboard.press("ArrowDown")
        expect(page.get_by_role("option").first).to_have_attribute("aria-selected", "true")
        keyboard.press("Enter")
    expect(page.locator("#history li")).to_have_count(2)
    expect(page.locator("#history li").first).to_contain_text("Film 12")
    press_tab_to(page, page.get_by_role("checkbox", name="trm-alone"))
    keyboard.press("Space")
    press_tab_to(page, page.get_by_role("button", name="Explore", exact=True))
    keyboard.press("Enter")
    expect(page.locator(".card.ranking")).to_have_count(2)
    press_tab_to(page, page.get_by_role("button", name="Edit call 1"))
    keyboard.press("Enter")
    keyboard.press("Control+A")
    keyboard.type("Horror")
    keyboard.press("Tab")
    keyboard.press("Enter")
    expect(turns(page).first.locator(".preference")).to_have_text("Preference: Horror")
    expect(page.locator(".card.ranking")).to_have_count(1)


def test_turns_appear_as_they_are_made(page: Page, site: Site) -> None:
    """The model waits before each segment; the page shows the turns before it, and no more."""
    page.get_by_role("checkbox", name="script").uncheck()
    page.get_by_role("checkbox", name="held").check()
    site.gate.single = True
    page.get_by_role("button", name="Explore", exact=True).click()
    assert site.gate.reached.wait(SECONDS)
    labels = []
    for made in (0, 1, 2):
        expect(turns(page)).to_have_count(made)
        expect(page.locator(".card.ranking")).to_have_count(0)
        expect(page.get_by_role("button", name="Stop")).to_be_enabled()
        labels.append(re.findall(r"\d+", page.locator("#map").get_attribute("aria-label") or ""))
        site.gate.pass_one()
    assert labels[0] != labels[1] != labels[2]
    site.gate.single = False
    site.gate.open.set()
    expect(page.locator(".card.ranking")).to_be_visible()


def test_a_preference_is_edited_and_explored_from(page: Page) -> None:
    page.get_by_role("button", name="Explore", exact=True).click()
    expect(page.locator(".card.ranking")).to_be_visible()
    before = turns(page).first.locator(".preference").inner_text()
    page.get_by_role("button", name="Edit call 2").click()
    page.get_by_label("Preference (phrases separated by ;)").fill("Horror; 1980s")
    page.get_by_role("button", name="Explore from here").click()
    expect(turns(page).nth(1).locator(".preference")).to_have_text("Preference: Horror; 1980s")
    expect(turns(page).first.locator(".preference")).to_have_text(before)
    expect(page.locator(".card.ranking")).to_be_visible()


def test_an_exploration_keeps_its_history_when_another_is_chosen(page: Page, site: Site, tmp_path: Path) -> None:
    seen = page.locator("#history li span").all_inner_texts()
    page.get_by_role("button", name="Explore", exact=True).click()
    expect(page.locator(".card.ranking")).to_be_visible()
    page.locator("#history button").first.click()
    expect(page.locator("#history li")).to_have_count(len(seen) - 1)
    with page.expect_download() as download:
        page.get_by_role("button", name="Save").click()
    download.value.save_as(kept := tmp_path / "exploration.json")
    assert [item["title"] for item in json.loads(kept.read_text())["history"]] == seen
    retriever: Any = site.service.workers["script"].explorer.retriever
    before = list(retriever.queries)
    page.get_by_role("button", name="Edit call 2").click()
    page.get_by_label("Preference (phrases separated by ;)").fill("Horror")
    page.get_by_role("button", name="Explore from here").click()
    expect(turns(page).nth(1).locator(".preference")).to_have_text("Preference: Horror")
    expect(page.locator(".card.ranking")).to_be_visible()
    again, edited, *later = retriever.queries[len(before) :]
    assert again == before[0]  # history and preference weight, too
    assert (edited.history, edited.preference_weight) == (before[1].history, DEFAULT_PREFERENCE_WEIGHT)
    assert {query.preference_weight for query in later} <= {PROMPT_DEFAULTS.preference_weight}
    expect(page.locator("#history li")).to_have_count(len(seen) - 1)


def ranked(page: Page) -> list[int]:
    """Numbers of the ranked films, ascending."""
    titles = page.locator(".ranked-items li span:first-child").all_inner_texts()
    return sorted(int(title.split()[1]) for title in titles)


def test_a_filter_is_chosen_shown_and_removed(page: Page, tmp_path: Path) -> None:
    """Film i is of genre i mod 5 and of 1970 + i."""
    button, chips = page.get_by_role("button", name="Explore", exact=True), page.locator("#chips button")
    expect(page.get_by_label("a brand")).to_be_hidden()  # no item has one
    page.get_by_label("a category").select_option("Horror")
    page.get_by_label("a category").select_option("War")
    page.get_by_label("from year").fill("1999")
    page.get_by_role("button", name="Add years").click()
    expect(chips).to_have_text(["Horror ×", "War ×", "1999–2009 ×"])
    _see_that_all_can_use(page)
    if "DEEPREC_SCREENSHOTS" in os.environ:
        page.screenshot(path=Path(os.environ["DEEPREC_SCREENSHOTS"]) / "filter.png")
    button.click()
    expect(page.locator(".card.ranking")).to_be_visible()
    history = page.locator("#history li span").all_inner_texts()
    left = [i for i in range(29, 40) if i % 5 in (2, 4) and f"Film {i} ({1970 + i})" not in history]
    assert ranked(page) == left
    page.get_by_role("button", name="Remove War").click()
    expect(chips).to_have_text(["Horror ×", "1999–2009 ×"])
    page.get_by_role("button", name="Edit call 1").click()  # of the exploration with its own filter
    page.get_by_label("Preference (phrases separated by ;)").fill("Horror")
    page.get_by_role("button", name="Explore from here").click()
    expect(turns(page).first.locator(".preference")).to_have_text("Preference: Horror")
    expect(page.locator(".card.ranking")).to_be_visible()
    assert ranked(page) == left
    with page.expect_download() as download:
        page.get_by_role("button", name="Save").click()
    download.value.save_as(kept := tmp_path / "exploration.json")
    button.click()
    expect(page.locator(".ranked-items li")).to_have_count(len([i for i in left if i % 5 == 2]))
    for name in ("Remove Horror", "Remove 1999–2009"):
        page.get_by_role("button", name=name).click()
    expect(chips).to_have_count(0)
    button.click()
    expect(page.locator(".ranked-items li")).to_have_count(10)
    page.locator("#replay").set_input_files(kept)
    expect(chips).to_have_text(["Horror ×", "War ×", "1999–2009 ×"])


def test_policies_are_compared_side_by_side(page: Page) -> None:
    page.get_by_role("checkbox", name="trm-alone").check()
    page.get_by_role("button", name="Explore", exact=True).click()
    expect(page.locator(".exploration")).to_have_count(2)
    expect(page.locator(".card.ranking")).to_have_count(2)
    expect(page.locator("[data-policy=trm-alone] .ranked-items li").first).to_contain_text(
        "recommender without a preference"
    )


def test_a_saved_exploration_is_replayed(page: Page, tmp_path: Path) -> None:
    page.get_by_role("button", name="Explore", exact=True).click()
    expect(page.locator(".card.ranking")).to_be_visible()
    shown = page.locator(".ranked-items").inner_text()
    with page.expect_download() as download:
        page.get_by_role("button", name="Save").click()
    kept = tmp_path / "exploration.json"
    download.value.save_as(kept)
    assert [event["name"] for event in json.loads(kept.read_text())["events"]][-1] == "ranking"
    page.reload()
    expect(page.locator("#history li")).not_to_have_count(0)
    page.locator("#replay").set_input_files(kept)
    expect(page.locator(".card.ranking")).to_be_visible()
    assert page.locator(".ranked-items").inner_text() == shown
    bad = tmp_path / "bad.json"
    bad.write_text("{")
    page.locator("#replay").set_input_files(bad)
    expect(page.get_by_role("alert")).to_contain_text("bad.json is not a saved exploration")


def test_markup_in_a_title_is_text(page: Page, tmp_path: Path) -> None:
    title = "<img src=x onerror=alert(1)><b>bold</b>"
    item = {"id": "x", "title": title, "categories": [title], "score": 1.0}
    turn = {"call": 1, "thought": title, "preference": title, "items": [item]}
    kept = tmp_path / "markup.json"
    kept.write_text(
        json.dumps({"history": [item], "events": [{"after": 0, "policy": title, "name": "turn", "data": turn}]})
    )
    page.locator("#replay").set_input_files(kept)
    expect(turns(page).locator("li").first).to_contain_text(title)
    assert page.locator("main img, main b").count() == 0


def test_any_id_and_any_title_work(browser: Browser, service: Service, tmp_path: Path) -> None:
    running = serve(replace(service, dataset=AWKWARD))
    page = browser.new_page()
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(next(running))
    expect(page.locator("#user option")).to_have_count(21)
    offered = page.locator("#user option").evaluate_all("options => options.map(({ value }) => value)")[1:]
    assert offered == USERS[:20]
    for user in offered:
        page.locator("#user").select_option(value=user)
        items = [AWKWARD.catalog.index(ItemId(item)) for item in history_of(user)]
        titles = [AWKWARD.catalog.titles[item] for item in items]
        expect(page.locator("#history li span")).to_have_text(titles)
        expect(page.locator("#problem")).to_have_text("")
    page.locator("#user").select_option(value="")
    while page.locator("#history li").count():
        page.locator("#history button").first.click()
    for title in TITLES:
        page.get_by_role("combobox", name="Add a title").fill(title)
        page.get_by_role("option", name=title).click()
    expect(page.locator("#history li span")).to_have_text(TITLES)
    page.get_by_role("button", name="Explore", exact=True).click()
    expect(page.locator(".card.ranking")).to_be_visible()
    page.get_by_role("button", name="Edit call 1").click()
    wish = "👨‍👩‍👧; کتاب‌ها; " + "🦜" * 240  # a cut inside a character would be refused
    page.get_by_label("Preference (phrases separated by ;)").fill(wish)
    page.screenshot(path=Path(os.environ.get("DEEPREC_SCREENSHOTS", tmp_path)) / "ids.png", full_page=True)
    page.get_by_role("button", name="Explore from here").click()
    expect(turns(page).first.locator(".preference")).to_have_text(f"Preference: {wish}")
    expect(page.locator(".card.ranking")).to_be_visible()
    assert not wrong
    page.close()
    next(running, None)


def test_a_title_that_is_not_there_is_reported(page: Page) -> None:
    page.get_by_role("combobox", name="Add a title").press_sequentially("qqqqqqzzzz")
    expect(page.get_by_role("alert")).to_contain_text("No title is similar to")


def test_a_slow_model_can_be_stopped(page: Page, site: Site) -> None:
    page.get_by_role("checkbox", name="script").uncheck()
    page.get_by_role("checkbox", name="held").check()
    page.get_by_role("button", name="Explore", exact=True).click()
    expect(page.locator(".writing")).to_have_text("…")
    page.get_by_role("button", name="Stop").click()
    expect(page.locator(".exploration .problem")).to_have_text("Stopped.")
    expect(page.get_by_role("button", name="Explore", exact=True)).to_be_enabled()


def test_a_server_that_is_gone_is_reported(page: Page) -> None:
    page.route("**/recommend", lambda route: route.abort())
    page.get_by_role("button", name="Explore", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("The server does not answer")
    expect(page.get_by_role("button", name="Explore", exact=True)).to_be_enabled()


def test_a_token_comes_from_the_address(browser: Browser, service: Service) -> None:
    token = "Ab+/9=="
    running = serve(service, token=token)
    page = browser.new_page()
    page.goto(f"{next(running)}/#token={token}")
    expect(page.locator("#history li")).not_to_have_count(0)
    page.close()
    next(running, None)


SCREENS: dict[str, dict[str, Any]] = {
    "desktop": {"viewport": {"width": 1280, "height": 1000}},
    "phone": {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True},
    "dark": {"viewport": {"width": 1280, "height": 1000}, "color_scheme": "dark"},
}


@pytest.mark.parametrize("name", SCREENS)
def test_it_fits_and_everyone_can_read_it(browser: Browser, site: Site, tmp_path: Path, name: str) -> None:
    """Looked at before, during and after an exploration; CONTRIBUTING says how the docs' pictures are made."""
    page = browser.new_page(reduced_motion="reduce", **SCREENS[name])  # a card that fades in has little contrast
    page.goto(os.environ.get("DEEPREC_SITE", site.url))
    expect(page.locator("#history li")).not_to_have_count(0)
    _see_that_all_can_use(page)
    page.get_by_role("button", name="Explore", exact=True).click()
    expect(page.locator(".card.ranking")).to_be_visible(timeout=120_000)
    _see_that_all_can_use(page)
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= SCREENS[name]["viewport"]["width"]
    picture = Path(os.environ.get("DEEPREC_SCREENSHOTS", tmp_path)) / f"{name}.png"
    page.screenshot(path=picture, full_page=True)
    if "DEEPREC_SCREENSHOTS" in os.environ:
        from PIL import Image

        Image.open(picture).quantize(256).save(picture, optimize=True)  # half the size
    page.get_by_role("button", name="Edit call 1").click()
    _see_that_all_can_use(page)
    page.keyboard.press("Escape")
    page.get_by_role("combobox", name="Add a title").press_sequentially("qqqqqqzzzz")
    expect(page.get_by_role("alert")).to_contain_text("No title is similar to")
    _see_that_all_can_use(page)
    page.close()


def _see_that_all_can_use(page: Page) -> None:
    found = Axe().run(page).response["violations"]
    assert not [(each["id"], each["impact"], [node["html"][:200] for node in each["nodes"][:3]]) for each in found]

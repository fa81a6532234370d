"""The page in a real browser, over a real server with a model that is told its answers."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import httpx
import pytest
import uvicorn

from models import ToldModel
from penname.records import Document
from penname.serve.app import create_app
from penname.serve.house import House
from penname.serve.settings import ServeSettings
from penname.train.folder import METRICS
from penname.train.index import create_index
from saved_reports import save_report
from trained_runs import save_card

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, FloatRect, Page

CHROMIUM = shutil.which("chromium")
needs_browser = pytest.mark.skipif(
    CHROMIUM is None or importlib.util.find_spec("playwright") is None,
    reason="needs Debian's chromium and the package playwright",
)
COUNT = count()
EVIL = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>'


def told(prompt: str) -> str:
    """What the fake model writes: a profile where one is asked for, and else a draft."""
    return "Personal: see you on Friday, cheers." if "Tuesday is fine" in prompt else "Generic: good day."


@dataclass
class Served:
    """A server on loopback, over a house."""

    url: str
    house: House


@dataclass
class People:
    """Users of one test: ann, bob, and a service that acts for ann; their ids, and their keys' secrets."""

    ann: str
    bob: str
    keys: dict[str, str]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The application in a thread of its own."""
    folder = tmp_path_factory.mktemp("page")
    save_run(folder / "mine")
    report = save_report(folder / "mail", method=f"step-back{EVIL}", remark=EVIL)
    settings = ServeSettings(
        db=folder / "penname.db", per_minute=100_000, runs=(folder / "mine",), reports=(report,)
    )
    house = House(settings, model=ToldModel(told))
    app = create_app(settings, house)
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", ws="websockets-sansio"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield Served(f"http://127.0.0.1:{listener.getsockname()[1]}", house)
        finally:
            server.should_exit = True
            thread.join()
            house.close()


def save_run(folder: Path) -> None:
    """A finished run with a card and two rows of metrics."""
    save_card(folder, "none", method="sft")
    create_index(folder, [])
    rows = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.5, "reward": 0.25}]
    (folder / METRICS).write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def people(served: Served) -> People:
    number = next(COUNT)
    ann, bob = f"ann{number}", f"bob{number}"
    store = served.house.store
    for user, text in {ann: "Tuesday is fine, cheers.", bob: "SECRET-OF-BOB"}.items():
        store.add_user(user).add([Document(id="first", title="Hello", text=text)])
    keys = {name: store.create_key(user=user)[1] for name, user in {"ann": ann, "bob": bob}.items()}
    return People(ann, bob, {**keys, "service": store.create_key(service=True, users=[ann])[1]})


@pytest.fixture(scope="module")
def context(served: Served) -> Iterator[BrowserContext]:
    """A browser, which keeps what it has loaded from one test to the next."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium.new_context()
        chromium.close()


Open = Callable[..., "Page"]


@pytest.fixture
def opened(context: BrowserContext, served: Served, people: People) -> Iterator[Open]:
    """`opened("ann")`: a page on which this key has signed in. No request may leave the host."""
    context.clear_cookies()
    pages: list[Page] = []
    asked: list[str] = []
    errors: list[str] = []

    def sign_in(key: str, width: int = 1280) -> Page:
        page = context.new_page()
        pages.append(page)
        page.set_viewport_size({"width": width, "height": 900})
        page.set_default_timeout(20_000)
        page.on("request", lambda request: asked.append(request.url))
        page.on("websocket", lambda opened: asked.append(opened.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(served.url)
        page.get_by_label("Key").fill(people.keys[key])
        page.get_by_role("button", name="Sign in").click()
        page.get_by_role("tab", name="Write").wait_for()
        return page

    yield sign_in
    for page in pages:
        page.close()
    hosts = {urlsplit(url).netloc for url in asked if not url.startswith(("data:", "blob:"))}
    assert hosts <= {urlsplit(served.url).netloc}
    assert not any(secret in url for url in asked for secret in people.keys.values())
    assert not errors


def tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name).click()


def write(page: Page, text: str = "The meeting") -> None:
    """Ask for drafts with the keyboard alone, and wait for both."""
    page.get_by_label("What is it about?").fill(text)
    page.keyboard.press("Control+Enter")
    page.get_by_text("Generic: good day.").wait_for()
    page.get_by_text("Personal: see you on Friday").first.wait_for()
    page.get_by_role("button", name="This one is better").nth(1).wait_for()


def box(page: Page, number: int) -> FloatRect:
    """Where a draft stands on the page."""
    found = page.get_by_role("article").nth(number).bounding_box()
    assert found is not None
    return found


@needs_browser
def test_two_drafts_stream_side_by_side_and_are_explained(opened: Open) -> None:
    page = opened("ann")
    write(page)
    drafts = page.get_by_role("article")
    assert box(page, 0)["y"] == box(page, 1)["y"]
    drafts.nth(1).get_by_text("What was used").click()
    drafts.nth(1).get_by_text("Document 1: Hello").wait_for()
    assert "Tuesday is fine" in drafts.nth(1).inner_text()
    drafts.nth(0).get_by_text("What was used").click()
    drafts.nth(0).get_by_text("Prompt", exact=True).wait_for()
    assert "Tuesday is fine" not in drafts.nth(0).inner_text()


@needs_browser
def test_a_choice_a_rating_and_an_edit_are_kept(opened: Open, served: Served, people: People) -> None:
    page = opened("ann")
    write(page)
    drafts = page.get_by_role("article")
    drafts.nth(1).get_by_role("button", name="This one is better").click()
    page.get_by_text("Kept as the better one").wait_for()
    drafts.nth(0).get_by_role("button", name="Bad").click()
    page.get_by_text("Kept your rating").wait_for()
    drafts.nth(1).get_by_role("button", name="Edit").click()
    page.get_by_role("textbox", name="Your version").fill("Friday. Cheers.")
    page.keyboard.press("Control+Enter")
    page.get_by_text("Kept your edit").wait_for()
    page.get_by_role("button", name="Write again").wait_for()

    kept = served.house.store.user(people.ann).preferences()
    assert [(one.kind, one.prompt) for one in kept] == [
        (kind, "The meeting") for kind in ("choice", "rating", "edit")
    ]
    assert kept[0].chosen == "Personal: see you on Friday, cheers."
    assert kept[0].rejected == "Generic: good day."
    assert kept[1].rating == -1
    assert kept[2].chosen == "Friday. Cheers."
    tab(page, "History")
    page.get_by_text("Preferences (3)").wait_for()


@needs_browser
def test_escape_leaves_an_edit(opened: Open, served: Served, people: People) -> None:
    page = opened("ann")
    write(page)
    page.get_by_role("article").nth(0).get_by_role("button", name="Edit").click()
    page.get_by_role("textbox", name="Your version").press("Escape")
    page.get_by_role("textbox", name="Your version").wait_for(state="hidden")
    assert not served.house.store.user(people.ann).preferences()


@needs_browser
def test_files_become_documents(opened: Open, served: Served, people: People) -> None:
    page = opened("ann")
    tab(page, "History")
    page.get_by_text("Documents (1)").wait_for()
    lines = [
        json.dumps({"user": people.ann, "text": "from a row", "title": "Row"}),
        json.dumps({"user": people.bob, "text": "his"}),
        "broken",
    ]
    page.locator("input[type=file]").set_input_files(
        [
            {"name": "note.txt", "mimeType": "text/plain", "buffer": b"A note."},
            {"name": "../../up.md", "mimeType": "text/markdown", "buffer": b"# Up\n\nStairs."},
            {"name": "rows.jsonl", "mimeType": "application/jsonl", "buffer": "\n".join(lines).encode()},
            {"name": "bad.txt", "mimeType": "text/plain", "buffer": b"\xff\xfe\x00"},
        ]
    )
    page.get_by_text("note.txt: 1 new").wait_for()
    page.get_by_text("up.md: 1 new").wait_for()
    page.get_by_text(re.compile("rows.jsonl: 1 new; line 3: .*; 1 rows are of other users")).wait_for()
    page.get_by_text(re.compile("bad.txt: not read")).wait_for()
    page.get_by_text("Documents (4)").wait_for()
    mine = {one.title: one.text for one in served.house.store.user(people.ann).documents()}
    assert set(mine) == {"Hello", "note", "Up", "Row"}
    assert "his" not in mine.values()
    page.get_by_role("button", name="Delete note").click()
    page.get_by_text("Documents (3)").wait_for()


@needs_browser
def test_what_users_write_is_text_and_never_markup(opened: Open, served: Served, people: People) -> None:
    ann = served.house.store.user(people.ann)
    ann.add([Document(id="evil", title=EVIL, text=f"Tuesday is fine {EVIL}")])
    page = opened("ann")
    tab(page, "History")
    page.get_by_text(EVIL).first.click()
    page.get_by_text(f"Tuesday is fine {EVIL}").wait_for()
    tab(page, "Write")
    write(page, EVIL)
    page.get_by_role("article").nth(1).get_by_text("What was used").click()
    page.get_by_text(re.compile("Document . ?: <img")).wait_for()
    assert page.evaluate("window.hacked") is None
    assert page.locator("main img").count() == 0
    page.reload()
    page.get_by_role("tab", name="Write").wait_for()
    assert page.evaluate("window.hacked") is None


@needs_browser
def test_the_profile_is_read_corrected_and_made_anew(opened: Open, served: Served, people: People) -> None:
    page = opened("ann")
    tab(page, "Profile")
    page.get_by_text("There is none yet").wait_for()
    page.get_by_label("What is known of the writer").fill("Short and kind.")
    page.get_by_role("button", name="Save").click()
    page.get_by_text("as you edited it").wait_for()
    found = served.house.store.user(people.ann).profile()
    assert found is not None
    assert (found.text, found.edited) == ("Short and kind.", True)
    page.get_by_role("button", name="Make it anew").click()
    page.get_by_text(re.compile("Version 2.*made of 1 documents")).wait_for()


@needs_browser
def test_a_service_adds_users_and_reaches_no_others(opened: Open, served: Served, people: People) -> None:
    page = opened("service")
    for name, heard in ((people.bob, "unknown user"), (f"cleo-{people.ann}", None)):
        page.get_by_role("button", name="Add a user").click()
        page.get_by_label("User id").fill(name)
        page.keyboard.press("Enter")
        if heard:
            page.get_by_text(heard).wait_for()
            page.keyboard.press("Escape")
            page.get_by_label("User id").wait_for(state="hidden")
    page.get_by_label("User id").wait_for(state="hidden")
    tab(page, "History")
    page.get_by_text("Documents (0)").wait_for()
    assert "SECRET" not in page.content()
    assert served.house.store.user(f"cleo-{people.ann}").count == 0


@needs_browser
def test_several_authors_write_together(opened: Open, served: Served, people: People) -> None:
    page = opened("service")
    page.get_by_role("button", name="Add a user").click()
    page.get_by_label("User id").fill(f"cleo-{people.ann}")
    page.keyboard.press("Enter")
    page.get_by_label("User id").wait_for(state="hidden")
    served.house.store.user(f"cleo-{people.ann}").add(
        [Document(text="Tuesday is fine for cleo.", title="Hers")]
    )
    page.get_by_label("Written together with").click()
    page.get_by_role("option", name=people.ann, exact=True).click()
    page.keyboard.press("Escape")
    write(page)
    page.get_by_role("article").nth(1).get_by_text("What was used").click()
    page.get_by_text(re.compile("Profile of cleo")).wait_for()
    page.get_by_text(re.compile(f"Profile of {people.ann}")).wait_for()


@needs_browser
def test_another_users_key_sees_nothing(opened: Open) -> None:
    page = opened("bob")
    tab(page, "History")
    page.get_by_text("Documents (1)").wait_for()
    assert "Tuesday" not in page.content()
    assert page.get_by_role("tab", name="Runs").count() == 0


@needs_browser
def test_erasing_takes_the_id_and_ends_the_session(opened: Open, served: Served, people: People) -> None:
    page = opened("ann")
    tab(page, "History")
    page.get_by_role("button", name="Erase …").click()
    button = page.get_by_role("button", name="Erase for good")
    page.get_by_label("to erase").fill("an")
    assert button.is_disabled()
    page.get_by_label("to erase").fill(people.ann)
    button.click()
    page.get_by_text(re.compile("1 documents")).wait_for()
    page.get_by_role("button", name="Close").click()
    page.get_by_label("Key").wait_for()
    left = [user.id for user in served.house.store.users()]
    assert people.ann not in left
    assert people.bob in left


@needs_browser
def test_everything_can_be_taken_away(opened: Open) -> None:
    page = opened("ann")
    tab(page, "History")
    with page.expect_download() as download:
        page.get_by_role("button", name="Export").click()
    text = download.value.path().read_text(encoding="utf-8")
    assert "Tuesday is fine" in text
    assert "SECRET" not in text


@needs_browser
def test_a_revoked_key_ends_the_session(opened: Open, served: Served, people: People) -> None:
    page = opened("ann")
    store = served.house.store
    [mine] = [key.id for key in store.keys() if key.user == people.ann]  # noqa: SIM118 (no dict)
    store.revoke_key(mine)
    tab(page, "History")
    page.get_by_label("Key").wait_for()


@needs_browser
def test_nothing_scrolls_sideways_on_a_phone(opened: Open) -> None:
    page = opened("service", width=360)
    write(page)
    assert box(page, 0)["y"] + box(page, 0)["height"] <= box(page, 1)["y"]
    seen = ("Preferences (0)", "What is known of the writer", "Losses", "What is it about?")
    for name, text in zip(("History", "Profile", "Runs", "Write"), seen, strict=True):
        tab(page, name)
        page.get_by_text(text).first.wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= 360


@needs_browser
def test_a_runs_measures_are_shown_as_they_come(opened: Open, served: Served) -> None:
    page = opened("service")
    tab(page, "Runs")
    page.get_by_text("Latest: loss 1.5, reward 0.25.").wait_for()
    page.get_by_role("img", name="Losses").locator("svg").wait_for()
    page.get_by_role("img", name="Rewards").locator("svg").wait_for()
    with (served.house.runs()["mine"] / METRICS).open("a") as file:
        file.write(json.dumps({"step": 3, "loss": 0.5}) + "\n")
    page.get_by_text("Latest: loss 0.5, reward 0.25.").wait_for()
    page.get_by_text("Card", exact=True).click()
    page.get_by_text('"method": "sft"').wait_for()


@needs_browser
def test_a_report_is_shown_with_its_intervals_and_its_markup_as_text(opened: Open) -> None:
    page = opened("service", width=360)
    tab(page, "Reports")
    page.get_by_text("sample 5cbd, test split, written by told.").wait_for()
    table = page.get_by_role("table").first
    table.get_by_role("row").nth(2).get_by_text("+0.199 *").wait_for()
    assert page.get_by_text(EVIL, exact=True).count() == 1
    page.get_by_text("Settings", exact=True).click()
    page.get_by_text("penname evaluate sample --task email").wait_for()
    page.get_by_text("All comparisons", exact=True).click()
    page.get_by_text("p (Holm)", exact=True).wait_for()
    assert page.evaluate("window.hacked") is None
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


@needs_browser
def test_reports_are_for_services(opened: Open) -> None:
    page = opened("ann")
    assert page.get_by_role("tab", name="Reports").count() == 0


# --- without a browser


def test_a_session_is_a_cookie_for_this_page_alone(served: Served, people: People) -> None:
    with httpx.Client(base_url=served.url) as client:
        wrong = client.post("/sign-in", data={"key": "pn-wrong"})
        assert wrong.status_code == 303
        assert "set-cookie" not in wrong.headers
        right = client.post("/sign-in", data={"key": people.keys["ann"]})
        cookie = right.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        assert people.keys["ann"] not in cookie
        assert right.headers["location"] == "/"
        stolen = client.post(
            "/sign-in", data={"key": people.keys["ann"]}, headers={"Origin": "https://elsewhere.example"}
        )
        assert stolen.status_code == 403


def test_the_page_may_load_nothing_from_elsewhere(served: Served) -> None:
    answer = httpx.get(served.url)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "script-src 'self' 'nonce-" in policy
    assert "'unsafe-inline'" not in policy.split("script-src")[1].split(";")[0]
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_the_api_still_answers_for_its_own_paths(served: Served) -> None:
    assert httpx.get(f"{served.url}/v1/nothing").status_code == 404
    assert httpx.get(f"{served.url}/v1/nothing").headers["content-type"] == "application/json"
    assert httpx.post(f"{served.url}/health").status_code == 405

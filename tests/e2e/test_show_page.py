"""The page that ``show --html`` writes, in a real Chromium: looked at, and used by keyboard."""

from __future__ import annotations

from contextlib import contextmanager
from random import Random
from typing import TYPE_CHECKING
from uuid import UUID

import pytest
from playwright.sync_api import Error, expect, sync_playwright

from commands import HOSTILE, command
from constellation_otel.cli.signs import duration_text
from constellation_otel.events import (
    ErrorInfo,
    Event,
    ExecutionCompleted,
    ExecutionStarted,
    ModuleCompleted,
    ModuleDetails,
    ModuleFailed,
    ModuleStarted,
)
from constellation_otel.transports.journal import Journal
from deliveries import MS, T0

from .peers import chromium

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from playwright.sync_api import Browser, Page

EXECUTION = UUID(int=7)
TRACEBACK = 'Traceback (most recent call last):\n  File "load.py", line 3, in load\nValueError: boom\n'
MARKUP = f"</script><script>window.hit=1</script><img src=x onerror=hit=1> <!-- @@data@@ {HOSTILE}"


def events_of(modules: int) -> list[Event]:
    """A run of so many modules, each taking the outputs of up to two before it; every 19th fails."""
    random = Random(modules)
    ids = [UUID(int=number + 100) for number in range(modules)]
    events: list[Event] = [ExecutionStarted(EXECUTION, "nightly", T0)]
    ends: list[int] = []
    for number, module_id in enumerate(ids):
        taken = sorted({random.randrange(max(0, number - 12), number) for _ in range(number and random.randrange(3))})
        start = max((ends[it] for it in taken), default=T0) + random.randrange(1, 8) * MS
        ends.append(start + random.randrange(1, 100) * MS)
        name = f"module-{number}" if number % 7 else f"a-module-whose-name-is-longer-than-its-column-{number}"
        details = ModuleDetails(upstream=tuple(ids[it] for it in taken)) if taken else None
        events.append(ModuleStarted(EXECUTION, module_id, name, start, details))
        if number % 19 == 9:
            error = ErrorInfo("ValueError", "boom", stacktrace=TRACEBACK)
            events.append(ModuleFailed(EXECUTION, module_id, name, error, ends[-1]))
        else:
            events.append(ModuleCompleted(EXECUTION, module_id, name, (ends[-1] - start) / MS, ends[-1]))
    end = max(ends) + 20 * MS
    return [*events, ExecutionCompleted(EXECUTION, "nightly", modules < 10, (end - T0) / MS, end)]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium.ARTIFACT.require(), args=list(chromium.OPTIONS), headless=True
        )
        yield browser
        browser.close()


@contextmanager
def opened(
    browser: Browser, folder: Path, events: list[Event], *, scheme: str = "light", width: int = 1_400
) -> Iterator[Page]:
    """A page of these events, written by the command; it complains of nothing, and asks for nothing else."""
    file = folder / "page.html"
    journal = Journal(folder / "journal.db", sinks=["otlp"])
    journal.append(events)
    journal.close()
    done = command("show", str(EXECUTION), "--from", f"journal:{folder}/journal.db", "--html", str(file))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    complaints: list[str] = []
    asked: list[str] = []
    context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 900}, offline=True)  # type: ignore[arg-type] # one of its names
    page = context.new_page()
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(file.as_uri())
    yield page
    assert (complaints, asked) == ([], [file.as_uri()])
    context.close()


CONTRASTS = """() => {
  const numbers = (colour) => colour.match(/[0-9.]+/g).map(Number);
  const linear = (part) => part <= .03928 ? part / 12.92 : ((part + .055) / 1.055) ** 2.4;
  const light = (colour) => {
    const [red, green, blue] = numbers(colour).map((part) => linear(part / 255));
    return .2126 * red + .7152 * green + .0722 * blue;
  };
  const behind = (it) => {
    for (; it; it = it.parentElement) {
      const colour = getComputedStyle(it).backgroundColor;
      if ((numbers(colour)[3] ?? 1) > 0) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const hasText = (it) => [...it.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
  const isSeen = (it) => it.checkVisibility() && !it.matches("script, noscript");
  return [...document.querySelectorAll("body *")].filter((it) => isSeen(it) && hasText(it)).map((it) => {
    const [less, more] = [light(getComputedStyle(it).color), light(behind(it))].sort((one, other) => one - other);
    return [(more + .05) / (less + .05), it.outerHTML.slice(0, 80)];
  });
}"""
"""The contrast of every text with what is behind it, as WCAG has it."""


@pytest.mark.parametrize("width", [1_400, 360])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("modules", [1, 10, 5_000])
def test_a_page_fits_and_can_be_read(browser: Browser, tmp_path: Path, modules: int, scheme: str, width: int) -> None:
    """Of however many rows, it holds those that are seen."""
    with opened(browser, tmp_path, events_of(modules), scheme=scheme, width=width) as page:
        grid = page.get_by_role("treegrid", name="Modules")
        expect(grid).to_have_attribute("aria-rowcount", str(modules + 2))
        assert min(modules + 1, 10) <= grid.get_by_role("row").count() <= 60
        page.locator("#rows .row").nth(1).click()
        expect(page.locator("#details")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert [it for it in page.evaluate(CONTRASTS) if it[0] < 4.5] == []
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert background == {"light": "rgb(255, 255, 255)", "dark": "rgb(15, 19, 25)"}[scheme]


def selected(page: Page) -> str:
    """The name of the row that assistive technology is pointed to, which is the selected one."""
    row = page.locator(f"#{page.locator('#grid').get_attribute('aria-activedescendant')}")
    expect(row).to_have_attribute("aria-selected", "true")
    return row.get_attribute("aria-rowindex") or ""


def test_the_timeline_is_used_by_keyboard(browser: Browser, tmp_path: Path) -> None:
    with opened(browser, tmp_path, events_of(5_000)) as page:
        grid, press = page.locator("#grid"), page.keyboard.press
        grid.focus()
        assert selected(page) == "2"
        press("ArrowDown")
        press("ArrowDown")
        press("ArrowUp")
        assert selected(page) == "3"
        press("End")
        assert selected(page) == "5002"
        press("PageUp")
        assert 4_900 < int(selected(page)) < 5_002
        press("ArrowLeft")
        assert selected(page) == "2"
        press("ArrowLeft")
        expect(grid).to_have_attribute("aria-rowcount", "2")
        expect(page.locator("#row-0")).to_have_attribute("aria-expanded", "false")
        press("ArrowRight")
        expect(grid).to_have_attribute("aria-rowcount", "5002")
        press("ArrowRight")
        assert selected(page) == "3"
        press("Enter")
        heading = page.locator("#details h2")
        expect(heading).to_be_focused()
        press("Escape")
        expect(grid).to_be_focused()
        expect(page.locator("#details")).to_be_hidden()


def test_the_timeline_zooms(browser: Browser, tmp_path: Path) -> None:
    """Around the row that is selected, by key, button and wheel; and no further than it can be read."""
    with opened(browser, tmp_path, events_of(10)) as page:
        grid, view = page.locator("#grid"), page.get_by_role("status")
        whole = view.inner_text()
        assert whole.startswith("Shows all of ")
        grid.focus()
        page.keyboard.press("End")
        bar = page.locator("#rows .row[aria-selected=true] .bar")
        before = bar.bounding_box()
        page.keyboard.press("+")
        after = bar.bounding_box()
        assert before is not None
        assert after is not None
        assert after["width"] == pytest.approx(2 * before["width"], abs=2)
        zoomed = view.inner_text()
        page.keyboard.press("Shift+ArrowLeft")
        assert view.inner_text() not in {whole, zoomed}
        page.keyboard.press("0")
        assert view.inner_text() == whole
        page.get_by_role("button", name="Zoom in").click()
        page.get_by_role("button", name="Earlier").click()
        page.get_by_role("button", name="Later").click()
        page.get_by_role("button", name="Zoom out").click()
        assert view.inner_text() == whole
        for _ in range(40):
            page.get_by_role("button", name="Zoom in").click()
        assert "of" in view.inner_text()
        assert page.locator(".tick").count() < 40
        page.get_by_role("button", name="Whole").click()
        box = grid.bounding_box()
        assert box is not None
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 100)
        page.keyboard.down("Control")
        page.mouse.wheel(0, -200)
        page.keyboard.up("Control")
        expect(view).not_to_have_text(whole)


def test_edges_path_and_errors_lead_to_their_rows(browser: Browser, tmp_path: Path) -> None:
    events = events_of(12)
    with opened(browser, tmp_path, events) as page:
        starts = [it for it in events if isinstance(it, ModuleStarted)]
        taker = next(it for it in starts if it.details is not None)
        assert taker.details is not None
        giver = next(it for it in starts if it.module_id == taker.details.upstream[0])
        page.get_by_title(taker.module_name, exact=True).click()
        details = page.locator("#details")
        expect(page.locator("#edges path.own").first).to_be_attached()
        details.get_by_role("button", name=giver.module_name, exact=True).click()
        expect(details.locator("h2")).to_have_text(giver.module_name)
        expect(details.get_by_role("button", name=taker.module_name, exact=True)).to_be_visible()
        page.get_by_label("All edges").check()
        edges = sum(len(it.details.upstream) for it in starts if it.details is not None)
        expect(page.locator("#edges path")).to_have_count(edges)
        step = page.locator(".steps button").first
        step.click()
        assert step.inner_text().startswith(details.locator("h2").inner_text())
        expect(details.get_by_text("Critical path")).to_be_visible()
        page.locator("summary").click()
        expect(page.locator("details pre")).to_have_text(TRACEBACK)
        page.get_by_role("button", name="Show in the timeline").click()
        expect(details.locator("pre")).to_have_text(TRACEBACK)
        details.get_by_role("button", name="Close").click()
        expect(details).to_be_hidden()


def test_names_that_are_markup_are_text(browser: Browser, tmp_path: Path) -> None:
    """And the page's policy lets no other script run, should one get in."""
    module_id = UUID(int=8)
    events: list[Event] = [
        ExecutionStarted(EXECUTION, MARKUP, T0),
        ModuleStarted(EXECUTION, module_id, MARKUP, T0),
        ModuleFailed(EXECUTION, module_id, MARKUP, ErrorInfo(MARKUP, MARKUP, stacktrace=MARKUP), T0 + MS),
        ExecutionCompleted(EXECUTION, MARKUP, False, 2.0, T0 + 2 * MS),
    ]
    with opened(browser, tmp_path, events) as page:
        page.locator("#rows .row").nth(1).click()
        page.locator("summary").click()
        said = "</script><script>window.hit=1</script><img src=x onerror=hit=1> <!-- @@data@@ a"
        for place in ("h1", "#rows .row >> nth=1", "#details h2", "#details pre", "details pre", "summary"):
            assert said in page.locator(place).inner_text()
        assert page.evaluate("[window.hit, document.images.length, document.scripts.length]") == [None, 0, 2]
    file = tmp_path / "page.html"
    file.write_text(file.read_text().replace("</main>", "<script>window.hit = 1</script><img src=x></main>"))
    page = browser.new_page()
    page.goto(file.as_uri())
    assert page.evaluate("window.hit") is None
    with pytest.raises(Error, match="Content Security Policy"):
        page.add_script_tag(content="window.hit = 1")
    page.close()


@pytest.mark.parametrize(
    "length_ns", [1, 999, 1_234, 999_500, 12_340_000, 59_900_000_000, 59_950_000_000, 3_599_500_000_000, 90 * 10**12]
)
def test_a_page_says_durations_as_the_terminal_does(browser: Browser, tmp_path: Path, length_ns: int) -> None:
    end = T0 + length_ns
    events: list[Event] = [
        ExecutionStarted(EXECUTION, "nightly", T0),
        ExecutionCompleted(EXECUTION, "nightly", True, length_ns / MS, end),
    ]
    with opened(browser, tmp_path, events) as page:
        assert page.locator("#rows .length").inner_text() == duration_text(length_ns, "µ")
        assert page.locator(".tick").count() >= 1

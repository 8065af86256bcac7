"""The published site in a browser: ASV's graphs, and the page in front of them."""

import functools
import http.server
import itertools
import json
import math
import os
import shutil
import subprocess
import threading
from pathlib import Path
from urllib.parse import parse_qsl, urlencode

import pytest

from benchmarks import site

ROOT = Path(__file__).parents[2]
CONF = json.loads((ROOT / "asv.conf.json").read_text())
RESULTS, SITE = ROOT / CONF["results_dir"], (ROOT / CONF["html_dir"]).parent
ARGS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
ARGS += ["--disable-background-networking", "--disable-component-update"]
DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 375, "height": 812}
SPEED = "montecarlo.FractionOfNumpy.track_fraction_of_numpy"
POINTS = "() => $('#main-graph').data('plot').getData().flatMap((series) => series.data.filter(([, y]) => y !== null))"


@pytest.fixture(scope="module")
def url():
    if not (SITE / "summary.json").exists():
        pytest.skip("nothing is published: run nox -s bench publish")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=SITE)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def browser(url):
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = next(filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome"])), None)
    if chromium is None:
        pytest.skip("there is no Chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=ARGS)
        yield browser
        browser.close()


@pytest.fixture
def complaints():
    """What the pages reported, failed to load, or asked another host for."""
    return []


@pytest.fixture
def new_page(browser, url, complaints):
    """Make pages whose complaints are kept."""
    pages = []

    def new_page(viewport=DESKTOP, color_scheme="light"):
        page = browser.new_page(base_url=url, viewport=viewport, color_scheme=color_scheme)
        pages.append(page)
        page.on("console", lambda message: message.type in ("error", "warning") and complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("requestfailed", lambda request: complaints.append(f"failed: {request.url}"))
        page.on("response", lambda response: response.status < 400 or complaints.append(f"missing: {response.url}"))
        page.on("request", lambda request: request.url.startswith((url, "data:")) or complaints.append(request.url))
        return page

    yield new_page
    for page in pages:
        page.close()


@pytest.fixture
def screenshots(tmp_path):
    return Path(os.environ.get("FASTDIV_SCREENSHOTS") or tmp_path)


def _runs(measure):
    """Yield, from ASV's results, a commit, its date, a benchmark of the measure, and its values by parameters."""
    versions = json.loads((RESULTS / "benchmarks.json").read_text())
    for path in RESULTS.glob("*/*.json"):
        run = json.loads(path.read_text())
        for key, columns in run.get("results", {}).items():
            values, params, version = columns[:3]
            if key.endswith(measure) and key in versions and version == versions[key]["version"]:
                chosen = itertools.product(*params)
                found = dict(zip(chosen, values or itertools.repeat(None), strict=False))
                yield run["commit_hash"], run["date"], key, found


def _is_measured(value):
    return value is not None and not math.isnan(value)


def _newest_names(measure):
    """Return what the newest commit has results for, failures included."""
    newest = max(date for _, date, _, _ in _runs(""))
    return {
        chosen[0].strip("'")
        for _, date, _, values in _runs(measure)
        for chosen, value in values.items()
        if date == newest and (value is None or not math.isnan(value))
    }


def _load(page):
    page.goto("/")
    page.locator("#figures").wait_for()
    return page


def test_grid_of_all_benchmarks(new_page, complaints, screenshots):
    page = new_page()
    page.goto("/asv/")
    page.locator(".benchmark-plot canvas").first.wait_for()
    cards = page.locator(".benchmark-container").all()
    assert len(cards) == len({key for _, _, key, _ in _runs("")})
    page.wait_for_load_state("networkidle")
    page.screenshot(path=screenshots / "dashboard.png")
    # A card's plot is fetched when the card comes into view, and cannot be drawn once the grid is left.
    for card in cards:
        card.scroll_into_view_if_needed()
        card.locator("canvas").first.wait_for()
    page.locator(f'.benchmark-container[href="#{SPEED}"]').click()
    page.locator("#main-graph canvas").first.wait_for()
    assert page.locator("#title").inner_text() == SPEED
    page.wait_for_load_state("networkidle")
    # Away from the buttons, which explain themselves.
    page.mouse.move(0, 0)
    page.locator(".tooltip").wait_for(state="detached")
    page.screenshot(path=screenshots / "dashboard-graph.png", full_page=True)
    assert complaints == []


def test_graph_has_a_point_for_every_commit_that_was_run(new_page, complaints):
    branch = subprocess.run(
        ["git", "rev-list", "--first-parent", CONF["branches"][0]], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    runs = [(commit, values) for commit, _, _, values in _runs(SPEED) if commit in branch]
    _, values = runs[-1]
    chosen = next(chosen for chosen, value in values.items() if _is_measured(value))
    names = json.loads((RESULTS / "benchmarks.json").read_text())[SPEED]["param_names"]
    points = [(commit, values[chosen]) for commit, values in runs if _is_measured(values.get(chosen))]

    page = new_page()
    selection = {f"p-{name}": choice for name, choice in zip(names, chosen, strict=True)}
    page.goto(f"/asv/#{SPEED}?{urlencode(selection)}")
    page.locator("#main-graph canvas").first.wait_for()
    page.wait_for_load_state("networkidle")
    plotted = page.evaluate(POINTS)
    assert len({revision for revision, _ in plotted}) == len({commit for commit, _ in points})
    assert sorted(value for _, value in plotted) == pytest.approx(sorted(value for _, value in points))
    assert complaints == []


@pytest.mark.parametrize("table", site.MEASURES)
def test_table_has_a_row_for_everything_measured(new_page, complaints, table):
    page = _load(new_page())
    names = page.locator(f"#{table} tbody tr:has(td) th").all_inner_texts()
    assert sorted(names) == sorted(_newest_names(site.MEASURES[table]))
    assert complaints == []


def test_number_links_to_its_graph(new_page, complaints):
    page = _load(new_page())
    link = page.locator("#speed td a").first
    shown = float(link.inner_text().strip("×").replace(",", ""))
    selection = parse_qsl(link.get_attribute("href").partition("?")[2])
    link.click()
    page.locator("#main-graph canvas").first.wait_for()
    chosen = page.locator("#graphdisplay-navigation-params .panel").evaluate_all(
        "(panels) => panels.map((panel) => [$('.panel-heading', panel).text(), $('.active', panel).text()])"
    )
    assert chosen == [["x-axis", "commit"], *([name[2:], choice.strip("'")] for name, choice in selection)]
    assert 1 / page.evaluate(POINTS)[-1][1] == pytest.approx(shown, rel=0.06)
    assert complaints == []


def test_every_page_of_asv_is_linked(new_page, complaints):
    page = _load(new_page())
    addresses = page.locator("nav a").evaluate_all("(links) => links.map((link) => link.href)")
    for address, title in zip(addresses, ["All benchmarks", "List of benchmarks", "Regressions"], strict=True):
        page.goto(address)
        page.get_by_text(title).first.wait_for()
        page.wait_for_load_state("networkidle")
    assert complaints == []


def test_landing_page_on_a_desktop(new_page, complaints, screenshots):
    page = _load(new_page())
    page.screenshot(
        path=screenshots / "landing.png", full_page=True, clip={"x": 0, "y": 0, "width": 1280, "height": 1200}
    )
    assert min(_background(page)) > 224
    assert complaints == []


def test_landing_page_on_a_phone_in_the_dark(new_page, complaints, screenshots):
    page = _load(new_page(viewport=PHONE, color_scheme="dark"))
    clip = {"x": 0, "y": 0, "width": 375, "height": 1200}
    page.screenshot(path=screenshots / "landing-phone-dark.png", full_page=True, clip=clip)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert max(_background(page)) < 48
    assert complaints == []


def _background(page):
    """Return red, green and blue."""
    color = page.evaluate("getComputedStyle(document.body).backgroundColor")
    return [int(part) for part in color.removeprefix("rgb(").removesuffix(")").split(",")]


def test_every_size_can_be_chosen(new_page, complaints):
    page = _load(new_page())
    sizes = page.locator("#size option")
    assert sizes.count() > 1
    for size in sizes.all():
        page.locator("#size").select_option(size.get_attribute("value"))
        assert page.locator("#speed td a").count() > 0
    assert complaints == []


def test_what_is_inserted_is_text(new_page):
    page = new_page()
    summary = json.loads((SITE / "summary.json").read_text())
    summary["commit"]["subject"] = summary["accuracy"][0]["name"] = "<img src=x>"
    page.route("**/summary.json", lambda route: route.fulfill(json=summary))
    _load(page)
    assert page.get_by_text("<img src=x>").count() == 2
    assert page.locator("img").count() == 0


def test_page_says_that_its_figures_are_missing(new_page):
    page = new_page()
    page.route("**/summary.json", lambda route: route.abort())
    page.goto("/")
    page.locator("#problem").wait_for()
    assert "could not be loaded" in page.locator("#problem").inner_text()
    assert page.locator("#figures").is_hidden()


def test_library_without_a_package_is_an_error(tmp_path):
    (tmp_path / "index.html").write_text('<script async src="//example.org/new.js"></script>')
    with pytest.raises(ValueError, match=r"//example\.org/new\.js"):
        site._vendor(tmp_path)


def test_without_npm_the_page_stays_as_it_is(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(site, "VENDOR", tmp_path / "vendor")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    page = tmp_path / "index.html"
    page.write_text(before := '<script src="https://code.jquery.com/jquery-3.3.1.min.js"></script>')
    site._vendor(tmp_path)
    assert page.read_text() == before
    assert "npm is missing" in capsys.readouterr().out

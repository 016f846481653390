import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import pytest
from matplotlib import rcParams

from bozzetto.plots import drawn_svg
from bozzetto.report import (
    Bars,
    Section,
    add_sections,
    columns,
    read_sections,
    shown,
    write_report,
)

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
needs_browser = pytest.mark.skipif(BROWSER is None, reason="chromium is not installed")


@dataclass(frozen=True)
class Sizes:
    """A result as analyses return it."""

    names: tuple[str, ...] = ("first", "second <b>bold</b> & co", "third")

    def rows(self):
        return [
            {"layer": name, "params": 10**i * 1234, "error": 0.123456 / (i + 1), "unused": None}
            for i, name in enumerate(self.names)
        ]

    def figure(self, ax):
        ax.barh(range(len(self.names)), [3, 2, 1][: len(self.names)])
        ax.plot([1, 2], [0, 1], "o-", label="a line")
        ax.set_yticks(range(len(self.names)), self.names)
        ax.set_xlabel("values")
        ax.legend()


SECTIONS = [Section("Sizes", Sizes(), "What is kept."), Section("Sizes & more", Sizes())]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    return write_report(path, SECTIONS, title="A <title>", text="One page.")


class Elements(HTMLParser):
    """Tags with their attributes, and all text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def browse(page, *options):
    """Open a page in a headless browser; returns what the browser logged."""
    command = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
        "--enable-logging=stderr",
        "--log-level=0",
        f"--user-data-dir={page.parent / 'profile'}",
        "--window-size=1000,1400",
        *options,
        page.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_the_page_holds_titles_texts_tables_and_plots(page):
    found = Elements(page.read_text())
    assert [tag for tag, _ in found.tags if tag in ("h1", "h2")] == ["h1", "h2", "h2"]
    for text in ("A <title>", "One page.", "What is kept.", "second <b>bold</b> & co", "a line"):
        assert text in found.text
    assert sum(tag == "table" for tag, _ in found.tags) == 2
    assert sum(tag == "svg" for tag, _ in found.tags) == 2
    assert "0.1235" in found.text
    assert "123\u202f400" in found.text
    assert "unused" not in found.text


def test_what_results_say_is_text_and_never_markup(page):
    assert "<b>" not in page.read_text()
    assert not any(tag == "script" for tag, _ in Elements(page.read_text()).tags)


def test_the_page_needs_nothing_from_elsewhere(page):
    text = page.read_text()
    loading = {"src", "href", "xlink:href", "data", "action", "poster", "srcset"}
    for tag, attributes in Elements(text).tags:
        for name in loading & attributes.keys():
            assert attributes[name].startswith(("#", "data:")), (tag, name, attributes[name])
    assert not re.findall(r"url\((?!#)|@import", text)


def test_names_are_unique_and_every_reference_has_its_target(page):
    text = page.read_text()
    names = re.findall(r'\sid="([^"]+)"', text)
    assert len(names) == len(set(names))
    used = re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"|labelledby="([^"]+)"', text)
    assert used
    assert {name for found in used for name in found if name} <= set(names)


def test_plots_are_named_and_take_the_page_s_colours(page):
    text = page.read_text()
    pictures = [a for tag, a in Elements(text).tags if tag == "svg"]
    assert [(a["role"], a["aria-label"]) for a in pictures] == [
        ("img", "Plot: Sizes"),
        ("img", "Plot: Sizes & more"),
    ]
    assert "currentColor" in text
    assert "var(--series-0)" in text
    assert not re.findall(r"#(?:010203|a10[1-6]0[1-6])", text)


def test_headings_of_tables_say_what_they_head(page):
    heads = [a for tag, a in Elements(page.read_text()).tags if tag == "th"]
    assert {a["scope"] for a in heads} == {"col", "row"}


def test_the_same_results_give_the_same_page(page, tmp_path):
    again = write_report(tmp_path / "a.html", SECTIONS, title="A <title>", text="One page.")
    assert again.read_text() == page.read_text()


def test_a_failed_report_leaves_the_earlier_one(tmp_path):
    class Broken(Sizes):
        def figure(self, ax):
            raise ZeroDivisionError

    path = write_report(tmp_path / "report.html", SECTIONS, title="before")
    before, style = path.read_text(), dict(rcParams)
    with pytest.raises(ZeroDivisionError):
        write_report(path, [Section("broken", Broken())], title="after")
    path.with_name("taken.html").mkdir()
    with pytest.raises(OSError, match="taken"):
        write_report(path.with_name("taken.html"), SECTIONS, title="after")
    assert path.read_text() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html", "taken.html"]
    assert dict(rcParams) == style


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        ("", "–"),
        ("word", "word"),
        (True, "True"),
        (1234567, "1\u202f234\u202f567"),
        (0.000123456, "0.0001235"),
        (0.25, "0.25"),
        (float("inf"), "inf"),
    ],
)
def test_values_are_shown_for_reading(value, text):
    assert shown(value) == text


def test_columns_are_those_that_say_something():
    rows = [{"a": 1, "b": None}, {"c": "", "d": 0, "a": 2}]
    assert columns(rows) == ["a", "d"]


@needs_browser
def test_a_browser_shows_it_without_errors_and_without_asking_anyone(page):
    log = page.parent / "net.json"
    said = browse(page, f"--screenshot={page.parent / 'light.png'}", f"--log-net-log={log}")
    assert "CONSOLE" not in said
    asked = re.findall(r'"url":\s*"(https?://[^"]+)"', log.read_text())
    own = [u for u in asked if "google" not in u and "gvt1" not in u]  # the browser's own updates
    assert own == []


@needs_browser
def test_the_console_is_watched(tmp_path):
    path = tmp_path / "bad.html"
    path.write_text("<!doctype html><title>x</title><script>undefinedThing()</script>")
    assert "CONSOLE" in browse(path, f"--screenshot={tmp_path / 'bad.png'}")


def colours(path):
    """The most frequent colour of a picture, and how many there are."""
    from PIL import Image

    with Image.open(path) as picture:
        counts = picture.convert("RGB").getcolors(maxcolors=1 << 24)
    assert counts is not None
    return max(counts)[1], len(counts)


@needs_browser
def test_the_picture_is_not_blank_and_follows_light_and_dark(page):
    light, dark = page.parent / "light.png", page.parent / "dark.png"
    browse(page, f"--screenshot={light}")
    browse(page, f"--screenshot={dark}", "--blink-settings=preferredColorScheme=0")
    (paper, many), (night, as_many) = colours(light), colours(dark)
    assert min(paper) > 240
    assert max(night) < 60
    assert min(many, as_many) > 100


@needs_browser
def test_it_prints_on_white(page):
    printed = page.parent / "page.pdf"
    browse(page, f"--print-to-pdf={printed}", "--blink-settings=preferredColorScheme=0")
    assert printed.read_bytes().startswith(b"%PDF")
    assert printed.stat().st_size > 10_000


def test_the_report_loads_no_library_before_it_is_written():
    code = "import sys, json, bozzetto.report; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"matplotlib", "jinja2"} & set(json.loads(done.stdout))


def test_a_long_table_gets_a_taller_plot(tmp_path):
    short = write_report(tmp_path / "a.html", [Section("s", Sizes())], title="t").read_text()
    names = tuple(f"layer {i}" for i in range(40))

    class Long(Sizes):
        def figure(self, ax):
            ax.barh(range(40), range(40))

    long = write_report(tmp_path / "b.html", [Section("s", Long(names))], title="t").read_text()
    heights = [float(re.findall(r'viewBox="0 0 \S+ (\S+)"', text)[0]) for text in (short, long)]
    assert heights[1] > 2 * heights[0]
    assert Path(tmp_path / "b.html").exists()


def test_a_long_label_widens_the_plot_and_is_not_cut_off():
    class Labelled(Sizes):
        def figure(self, ax):
            super().figure(ax)
            ax.set_xlabel("a label that is much longer than the axes below which it stands " * 2)

    found = [drawn_svg(result, "t") for result in (Sizes(), Labelled())]
    short, long = (float(re.findall(r'viewBox="0 0 (\S+)', text)[0]) for text in found)
    assert long > 1.3 * short


def test_sections_are_added_day_by_day_and_replaced_by_title(tmp_path):
    add_sections(tmp_path, [Section("First", Sizes(), "then"), Section("Second", Sizes())])
    page = add_sections(tmp_path, [Section("Third", Sizes()), Section("First", Sizes(), "now")])
    found = read_sections(tmp_path)
    assert [(s.title, s.text) for s in found] == [("First", "now"), ("Second", ""), ("Third", "")]
    assert found[0].rows[0] == {"layer": "first", "params": 1234, "error": 0.123456, "unused": None}
    text = page.read_text()
    assert text.count("<svg") == 3
    assert "then" not in text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html", "report.json"]


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="or one of ours"):
        add_sections(tmp_path, SECTIONS)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


PLOT = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:x="http://www.w3.org/1999/xlink">%s</svg>'


@pytest.mark.parametrize(
    "inside",
    [
        "<script>alert(1)</script>",
        "<g onload='alert(1)'/>",
        "<use x:href='https://elsewhere.example/'/>",
        "<image x:href='https://elsewhere.example/a.png'/>",
        "<foreignObject/>",
        "<p xmlns='http://www.w3.org/1999/xhtml'/>",
        "<meta/>",
        "<g>",
    ],
)
def test_a_stranger_s_plot_is_refused(tmp_path, inside):
    section = {"title": "t", "text": "", "rows": [], "svg": PLOT % inside}
    (tmp_path / "report.json").write_text(json.dumps([section]))
    with pytest.raises(ValueError, match=r"report\.json is not a list of sections: a plot"):
        add_sections(tmp_path, [])
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]


def test_what_html_and_xml_read_differently_is_gone(tmp_path):
    trick = PLOT % "<!--><meta http-equiv='refresh' content='0;url=https://x.example'>--><g/>"
    section = {"title": "t", "text": "", "rows": [], "svg": trick}
    (tmp_path / "report.json").write_text(json.dumps([section]))
    assert "x.example" not in add_sections(tmp_path, []).read_text()


@pytest.mark.parametrize(
    "content",
    ["{", "{}", "[1]", '[{"title": "t"}]', '[{"title": 1, "text": "", "rows": [], "svg": ""}]',
     '[{"title": "t", "text": "", "rows": {"a": 1}, "svg": ""}]'],
)  # fmt: skip
def test_damaged_sections_are_refused(tmp_path, content):
    (tmp_path / "report.json").write_text(content)
    with pytest.raises(ValueError, match="is not a list of sections"):
        read_sections(tmp_path)


def test_half_a_surrogate_becomes_a_question_mark(tmp_path):
    section = {"title": "half \ud800 of one", "text": "", "rows": [], "svg": PLOT % "<g/>"}
    (tmp_path / "report.json").write_text(json.dumps([section]))
    assert "half ? of one" in add_sections(tmp_path, []).read_text(encoding="utf-8")


def test_bars_stand_side_by_side():
    from matplotlib.figure import Figure

    rows = [{"layer": "a", "x": 3, "y": 1}, {"layer": "b", "x": 2, "y": None}]
    bars = Bars(rows, "layer", ("x", "y"), "values")
    ax = Figure().subplots()
    bars.figure(ax)
    assert [p.get_width() for p in ax.patches] == [3, 2, 1, 0]
    assert len({p.get_y() for p in ax.patches}) == 4
    assert bars.rows() == rows


def luminance(colour):
    """Relative luminance as WCAG 2.2 defines it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_measured_as_wcag_does():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)


def test_text_and_plots_stand_out_from_the_paper_in_light_and_dark(page):
    themes = re.findall(r":root \{(.*?)\}", page.read_text(), re.DOTALL)
    assert len(themes) == 2
    for theme in themes:
        colours = dict(re.findall(r"--([\w-]+): (#\w{6})", theme))
        papers = [colours["paper"], colours["stripe"]]
        for paper in papers:
            for text in ("ink", "soft"):
                assert contrast(colours[text], paper) >= 4.5, (text, paper)
        series = [colour for name, colour in colours.items() if name.startswith("series")]
        assert len(series) == 6
        for colour in series:
            assert contrast(colour, colours["paper"]) >= 3, colour


def test_a_page_of_many_sections_lists_them(tmp_path):
    many = [Section(f"Part {i}", Sizes()) for i in range(3)]
    found = Elements(write_report(tmp_path / "a.html", many, title="t").read_text())
    links = [a["href"] for tag, a in found.tags if tag == "a"]
    assert links == ["#section-1", "#section-2", "#section-3"]
    assert {a.get("id") for tag, a in found.tags if tag == "h2"} == {link[1:] for link in links}

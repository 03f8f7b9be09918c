"""What the study writes: tables, words, JSON, CSV, plots and the page, which a real browser opens."""

import csv
import json
import re
import shutil
import subprocess
from dataclasses import replace

import pytest

from kvmattr.measure import text
from kvmattr.study import plots, report, table
from kvmattr.study.growth import Asked, Growth
from kvmattr.study.report import Report
from kvmattr.study.results import Result

MACHINE = {"host": "here", "kernel": "6.12", "cpu": "a CPU", "cpus": 2, "memory_bytes": 8_000_000_000,
           "python": "3.11", "numpy": "2", "kvmattr": "0", "kvm": {"memslots": 32764},
           "started": "2026-11-22"}
METHOD = {"rounds": 3, "round_seconds": 0.1, "cell_seconds": 10, "order": "in turn", "clock": "a clock"}
QUIET = {"seconds": 1.0, "other_cpus": 0.0, "stolen_cpus": 0.0}


def cell(backend: str, size: int, samples: list[float], kind: str = "model", **changes) -> Result:
    fields = {"scenario": "conversion", "backend": backend, "kind": kind, "size": size,
              "unit": "ns/conversion", "status": "ok" if samples else "failed", "samples": samples,
              "operations": 64, "host": "here"} | changes
    return Result(**fields)


def of(results: list[Result]) -> Report:
    return Report(MACHINE, METHOD, QUIET, results)


@pytest.fixture
def whole_report() -> Report:
    results = []
    for size in (100, 10_000):
        results += [cell("store", size, [50.0, 52.0, 51.0]), cell("memslots", size, [1500.0, 1560.0, 1530.0]),
                    cell("numpy", size, [50.0, 53.0, 50.5]),
                    cell("kvm-memslots", size, [100_000.0, 110_000.0, 105_000.0], "kernel"),
                    cell("empty-ioctl", size, [160.0, 170.0, 180.0], "kernel"),
                    cell("kvm-attributes", size, [], "kernel", status="unavailable",
                         note="kernel has no <attributes>")]
    results += [cell("store", 100_000, [60.0, 61.0, 62.0]),
                cell("memslots", 100_000, [], note="failed at k = 16399: EINVAL", reached=16398),
                cell("numpy", 100_000, [], status="wrong", note="its state is [], should be [(0, 1, 1)]")]
    return Report(MACHINE, METHOD, QUIET, results)


class TestText:
    @pytest.mark.parametrize(("value", "unit", "shown"), [
        (0.4, "ns/x", "0.4 ns"), (999, "ns/x", "999 ns"), (1000, "ns/x", "1 us"), (2.5e9, "ns/x", "2.5 s"),
        (822_000, "bytes", "822 kB"), (17, "bytes", "17 B"),
    ])
    def test_quantity(self, value, unit, shown):
        assert text.quantity(value, unit) == shown

    def test_sizes(self):
        assert text.size(1 << 32, "guest size") == "16 TiB"
        assert text.size(512, "block size") == "2 MiB"
        assert text.size(512, "runs") == "512"


class TestTable:
    def test_cells(self, whole_report):
        model, kernel = table.tables(whole_report)
        assert model.header == ["earlier conversions", "store", "memslots", "numpy"]
        assert model.rows[0] == ["100", "51 ns (50.2..51.8)", "1.53 us (1.51..1.55) x30",
                                 "50.5 ns (50.1..52.5) x1?"]
        assert model.rows[2] == ["100,000", "61 ns (60.2..61.8)",
                                 "failed at k = 16399: EINVAL", "wrong"]
        assert model.notes == ["numpy at 100,000: its state is [], should be [(0, 1, 1)]"]
        assert kernel.header == ["earlier conversions", "kvm-memslots", "empty-ioctl"]
        assert all(" x" not in word for row in kernel.rows for word in row)
        assert kernel.notes == ["kvm-attributes: kernel has no <attributes>"]

    def test_a_floor_under_nothing_is_not_shown(self, whole_report):
        cells = [result for result in whole_report.results if result.backend != "kvm-memslots"]
        _, kernel = table.tables(of(cells))
        assert (kernel.rows, kernel.notes) == ([], ["kvm-attributes: kernel has no <attributes>"])

    def test_refusals_are_told_once_a_backend(self):
        refused = [cell("numpy", size, [], status="refused", note=f"would take {size} GB of 1 GB free")
                   for size in (100, 1000)]
        (model, ) = table.tables(of([cell("store", 10, [1.0]), cell("numpy", 10, [1.0]), *refused]))
        assert model.notes == ["numpy refused at 100 and 1,000: at 100 it would take 100 GB of 1 GB free"]
        (model, ) = table.tables(of([cell("store", 10, [1.0]), *refused]))
        assert model.header == ["earlier conversions", "store"]
        assert model.notes == ["numpy: would take 100 GB of 1 GB free"]

    def test_an_error_is_told_below(self):
        broken = cell("store", 100, [], status="error", note="KeyError: 'x' (arm.py:1)")
        (model, ) = table.tables(of([broken, cell("numpy", 100, [1.0])]))
        assert model.rows == [["100", "error", "1 ns"]]
        assert model.notes == ["store at 100: KeyError: 'x' (arm.py:1)"]

    def test_plain_is_aligned(self, whole_report):
        lines = whole_report.table(200).splitlines()
        assert lines[0].startswith("conversion (model): What does converting")
        assert len({len(line) for line in lines[1:4]}) == 1
        assert "could not be told apart" in lines[-1]


class TestSummary:
    def test_says_what_was_measured(self, whole_report):
        # What is expected of real memslots depends on the machine.
        asked = Asked("?", "earlier conversions", (Growth("falling", ("kvm-memslots", ), "the first are dear"), ))
        said = replace(whole_report, scenarios={"conversion": asked}).sentences
        assert said == [
            "After 100 and 10,000 earlier conversions, converting one page costs 51 ns and 51 ns by "
            "attributes (store) and 1.53 us and 1.53 us by splitting memslots (memslots): 30 and 30 times as "
            "much.",
            "By attributes (store) it still costs 61 ns after 100,000.",
            "Memslots stop working in the model (memslots) after 16,398 random conversions: failed at k = "
            "16399: EINVAL.",
            "In this kernel a conversion by kvm-memslots takes 105 us and 105 us after 100 and 10,000 "
            "earlier ones; an empty ioctl takes 170 ns.",
            "kvm-attributes did not run: kernel has no <attributes>.",
            "WRONG: numpy in conversion at 100,000: its state is [], should be [(0, 1, 1)].",
            "conversion: kvm-memslots: expected falling (the first are dear), seen 1x from 100 to 10,000: not as "
            "expected.",
            "Could not be told apart: numpy and store in conversion at 100; numpy and store in conversion at "
            "10,000.",
        ]

    def test_every_number_comes_from_the_results(self, whole_report):
        nothing = [cell("store", 100, [], status="stopped", note="stopped after 1 s")]
        assert of(nothing).sentences == ["Nothing was measured."]

    def test_an_error_of_a_unit_is_told_once(self):
        errors = [cell(name, 100, [], status="error", note="ValueError: no") for name in ("store", "numpy")]
        assert of(errors).sentences == [
            "Nothing was measured.", "ERROR: store in conversion at 100 and 1 more cells: ValueError: no."]

    def test_one_reason_is_told_once_for_all_that_it_keeps_from_running(self):
        absent = [cell(name, size, [], "kernel", status="unavailable", note="no permission")
                  for size in (1, 10) for name in ("kvm-memslots", "empty-ioctl")]
        assert of(absent).sentences == ["Nothing was measured.",
            "kvm-memslots and empty-ioctl did not run: no permission."]

    def test_a_busy_machine_is_mentioned(self, whole_report):
        busy = {"seconds": 1.0, "other_cpus": 0.9, "stolen_cpus": 0.2}
        assert "The machine was not quiet" in replace(whole_report, load=busy).sentences[-1]


class TestData:
    def test_json_there_and_back(self, whole_report, tmp_path):
        path = tmp_path / "a.json"
        whole_report.save(path)
        assert report.load(path) == whole_report
        record = json.loads(path.read_text())
        assert record["schema"] == 2
        first = record["results"][0]
        assert (first["scenario"], first["backend"], first["size"], first["median"]) == (
            "conversion", "store", 100, 51.0)
        assert record["comparisons"][0]["ratio"] == 30.0
        assert [path.name for path in tmp_path.iterdir()] == ["a.json"]

    def test_csv(self, whole_report, tmp_path):
        path = tmp_path / "a.csv"
        whole_report.save(path)
        rows = list(csv.DictReader(path.read_text().splitlines()))
        assert len(rows) == len(whole_report.results)
        assert (rows[1]["backend"], float(rows[1]["median"])) == ("memslots", 1530.0)
        assert "samples" not in rows[0]


@pytest.fixture
def page(whole_report, tmp_path):
    pytest.importorskip("matplotlib")
    pytest.importorskip("jinja2")
    path = tmp_path / "report.html"
    whole_report.save(path)
    return path


class TestPage:
    def test_needs_no_network(self, page):
        content = page.read_text()
        addresses = set(re.findall(r"""(?:https?:)?//[^\s"'<>)]+""", content))
        assert all(address.startswith(("http://www.w3.org/", "//www.w3.org/")) for address in addresses)
        assert not re.search(r"<(link|img|iframe)\b|<script[^>]+src|@import|url\((?!#)", content)

    def test_shows_all_and_escapes_what_it_shows(self, page, whole_report):
        content = page.read_text()
        assert content.count("<svg") == 2
        assert "kernel has no &lt;attributes&gt;" in content
        assert "<attributes>" not in content
        rows = content.partition('class="sortable"')[2].partition("</table>")[0]
        assert rows.count("<tr>") == 1 + sum(result.status != "unavailable" for result in whole_report.results)

    def test_ids_of_the_plots_differ(self, page):
        ids = re.findall(r'<clipPath id="([^"]+)"', page.read_text())
        assert len(ids) == len(set(ids)) > 1

    def test_opens_sorts_and_fits_in_a_browser(self, page, tmp_path):
        names = ("chromium", "chromium-browser", "google-chrome")
        browser = next(filter(None, map(shutil.which, names)), None)
        if browser is None:
            pytest.skip("no browser is installed (chromium)")
        # The page sorts itself by median and reports what it sees in its title, which --dump-dom prints.
        probe = """<script>
          const headings = [...document.querySelectorAll("table.sortable th button")];
          headings[3].click(); headings[3].click();
          const first = document.querySelector("table.sortable tbody tr").cells[1].textContent;
          const wide = document.documentElement.scrollWidth <= document.documentElement.clientWidth;
          const ink = getComputedStyle(document.querySelector("figure svg text")).fill;
          const seen = JSON.stringify([first, wide, ink, getComputedStyle(document.body).color, innerWidth]);
          document.title = seen;
          parent.postMessage(seen, "*");
        </script>"""
        probed = tmp_path / "probed.html"
        probed.write_text(page.read_text().replace("</body>", probe + "</body>"))
        # A window cannot be as narrow as a phone; a frame in it can.
        phone = tmp_path / "phone.html"
        phone.write_text("""<title>waits</title><script>
          addEventListener("message", (message) => { document.title = message.data; });
        </script><iframe src="probed.html" width="390" height="900" style="border: 0"></iframe>""")
        for opened, scheme, width in ((probed, "1", 1200), (phone, "1", 390), (phone, "0", 390), (probed, "0", 1200)):
            # The budget of time lets the frame's message arrive, however late, before the page is printed.
            printed = subprocess.run(
                [browser, "--headless", "--virtual-time-budget=10000", "--no-sandbox", "--disable-gpu",
                 "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update",
                 "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1200,900", "--dump-dom",
                 f"--blink-settings=preferredColorScheme={scheme}", opened.as_uri()],
                capture_output=True, text=True, timeout=120, check=True).stdout
            title = re.search(r"<title>(.*?)</title>", printed).group(1)
            first, fits, ink, body_ink, inner_width = json.loads(title)
            assert inner_width == width
            assert first == "kvm-memslots"
            assert fits
            assert ink == body_ink
            assert (sum(map(int, re.findall(r"\d+", ink))) > 384) == (scheme == "0")


def test_plots_show_what_was_measured_alone(whole_report):
    pytest.importorskip("matplotlib")
    # It failed after two rounds: the table says so, and no curve may say otherwise.
    failed = cell("memslots", 100_000, [9000.0, 9100.0], status="failed", note="failed at k = 16399", reached=16398)
    results = [result for result in whole_report.results
               if (result.backend, result.size) != ("memslots", 100_000)] + [failed]
    model = next(plot for plot in plots.plots(of(results)) if plot.stem == "conversion-model")
    axes = model.figure.axes[0]
    drawn = {line.get_label(): list(line.get_xdata()) for line in axes.get_lines()}
    assert drawn["store"] == [100, 10_000, 100_000]
    assert drawn["memslots"] == [100, 10_000]
    assert [text.get_text() for text in axes.texts] == ["memslots ends at 16,398"]


@pytest.mark.parametrize("medians", [(100.0, 105.0), (113.0, 361.0), (2.0, 9.0), (450.0, 480.0), (10.0, 9_000.0)])
def test_every_plot_has_numbers_and_a_flat_curve_looks_flat(medians):
    pytest.importorskip("matplotlib")
    cells = [cell("store", size << 18, [median] * 3, scenario="guest") for size, median in zip((1, 16), medians,
                                                                                             strict=True)]
    axes = of(cells).figure("guest").axes[0]
    low, high = axes.get_ylim()
    assert high >= 9.99 * low
    assert len([each for each in axes.get_yticks() if low <= each <= high]) >= 2
    assert not any(label.get_text() for label in axes.get_yticklabels(minor=True))


def test_plots_are_files(whole_report, tmp_path):
    pytest.importorskip("matplotlib")
    drawn = [(path.name, make()) for path, make in plots.files(whole_report, tmp_path)]
    assert [name for name, _ in drawn] == ["conversion-model.png", "conversion-model.svg",
                                           "conversion-kernel.png", "conversion-kernel.svg"]
    assert drawn[0][1].startswith(b"\x89PNG")
    assert b"<svg" in drawn[1][1]
    assert whole_report.figure("conversion").axes
    with pytest.raises(KeyError, match="'rmw' was not measured at two sizes or more"):
        whole_report.figure("rmw")

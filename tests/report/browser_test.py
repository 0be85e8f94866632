#!/usr/bin/env python3
"""Opens reports in headless Chromium and looks at what they draw: browser_test.py build/apps/tandem

Exits with 77, for "skipped", where there is no Chromium; in CI that is a failure.
"""
import html
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest
import urllib.error
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HOSTILE = "</script><script>document.documentElement.dataset.hacked=1</script><img src=x onerror=\"document.documentElement.dataset.hacked=1\">'\u2028&lt;"

# Goes before all other scripts of a page.
LISTEN = """
const problems = [];
addEventListener('error', (event) => problems.push(event.message), true);
addEventListener('unhandledrejection', (event) => problems.push(String(event.reason)));
document.addEventListener('securitypolicyviolation', (event) => problems.push('refused ' + event.blockedURI));
for (const level of ['error', 'warn']) console[level] = (...words) => problems.push(words.join(' '));
"""

# Goes after them; ACTS stands for what is done to the page meanwhile.
LOOK = """
const isDrawn = (canvas) => {
  const blank = document.createElement('canvas');
  Object.assign(blank, {width: canvas.width, height: canvas.height});
  return canvas.toDataURL() !== blank.toDataURL();
};
const control = (label) => [...document.querySelectorAll('#controls label')].find((each) => each.textContent.includes(label))
    .querySelector('input, select');
const change = (element, value) => {
  element.value = value;
  element.dispatchEvent(new Event('input'));
  element.dispatchEvent(new Event('change'));
};
const frames = () => [...document.querySelectorAll('.plot')];
const look = (act) => ({
  act, plots: Number(document.documentElement.dataset.plots), points: Number(document.documentElement.dataset.points),
  drawn: frames().filter((frame) => [...frame.querySelectorAll('canvas')].some(isDrawn)).length,
  labelled: frames().filter((frame) => frame.getAttribute('aria-label')).length,
  ranges: plots.map((plot) => plot.graph ? plot.graph.xAxisRange().map(Math.round) : null),
  wide: document.documentElement.scrollWidth > innerWidth,
});
const pointAt = (plot, step) => {
  const canvas = [...plot.canvas.querySelectorAll('canvas')].pop(), at = canvas.getBoundingClientRect();
  canvas.dispatchEvent(new MouseEvent('mousemove',
      {clientX: at.left + plot.graph.toDomXCoord(step), clientY: at.top + 80, bubbles: true}));
};
const drag = (plot, from, to) => {
  const canvas = [...plot.canvas.querySelectorAll('canvas')].pop(), at = canvas.getBoundingClientRect();
  const send = (target, kind, step) => target.dispatchEvent(new MouseEvent(kind, {bubbles: true, cancelable: true,
      view: window, button: 0, clientX: at.left + plot.graph.toDomXCoord(step), clientY: at.top + 80}));
  send(canvas, 'mousedown', from);
  send(document, 'mousemove', to);
  send(document, 'mouseup', to);
};
const looks = [look('')];
ACTS
document.documentElement.dataset.probe = JSON.stringify({
  problems, looks, title: document.title,
  headings: [...document.querySelectorAll('h2')].map((each) => each.textContent),
  captions: [...document.querySelectorAll('.images figcaption')].map((each) => each.textContent),
  images: [...document.images].filter((image) => image.complete && image.naturalWidth > 0).length,
  differing: [...document.querySelectorAll('.differs th')].map((each) => each.firstChild.textContent),
  notes: [...document.querySelectorAll('.notes li')].map((each) => each.textContent),
  hovers: plots.filter((plot) => !plot.hover.hidden).map((plot) => plot.hover.textContent),
  hacked: document.documentElement.dataset.hacked || null,
  fetched: performance.getEntriesByType('resource').map((entry) => entry.name).filter((name) => !name.startsWith('data:')),
});
"""


def make_run(directory, *options):
    subprocess.run([sys.executable, HERE / "make_run.py", directory, *map(str, options)], check=True)
    return directory


def probe(page, acts=(), size="1280,900"):
    """What a page shows: `looks` at first and after each of the scripts in `acts`, and the rest at the end."""
    text = page.read_text()
    nonce = re.search(r"'nonce-(\w+)'", text).group(1)
    script = '<script nonce="%s">%s</script>'
    text = text.replace("<title>", script % (nonce, LISTEN) + "<title>", 1)
    end = text.rindex("</body>")
    looks = "".join(f"{act}\nlooks.push(look({json.dumps(act)}));\n" for act in acts)
    probed = page.with_suffix(".probed.html")
    probed.write_text(text[:end] + script % (nonce, LOOK.replace("ACTS", looks)) + text[end:])
    with tempfile.TemporaryDirectory() as profile:
        done = subprocess.run([CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                               "--disable-background-networking", f"--user-data-dir={profile}", f"--window-size={size}",
                               "--virtual-time-budget=5000", "--enable-logging=stderr", "--dump-dom", probed.as_uri()],
                              capture_output=True, text=True, timeout=100)
    found = re.search(r'data-probe="([^"]*)"', done.stdout)
    if not found:
        raise AssertionError("the page's scripts did not end:\n" + done.stderr + done.stdout[-2000:])
    result = json.loads(html.unescape(found.group(1)))
    result["console"] = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return result


def wait_for_connection(port):
    """Until somebody has one to this port of this machine, and has had time to ask."""
    mine = f":{port:04X}"
    for _ in range(600):
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            _, local, _, state = line.split()[:4]
            if local.endswith(mine) and state == "01":
                return time.sleep(2)
        time.sleep(0.1)
    raise AssertionError("the browser did not ask for the page")


class Report(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.at = Path(self.folder.name)

    def report(self, *runs):
        page = self.at / "out.html"
        subprocess.run([TOOL, "report", *runs, "-o", page], check=True, stdout=subprocess.DEVNULL)
        return page

    def check_sound(self, seen):
        self.assertEqual(seen["problems"], [])
        self.assertEqual(seen["console"], [])
        self.assertEqual(seen["fetched"], [])
        self.assertIsNone(seen["hacked"])
        for look in seen["looks"]:
            with self.subTest(look["act"]):
                self.assertFalse(look["wide"], "the page is wider than the window")
                self.assertEqual(look["drawn"], look["plots"])
                self.assertEqual(look["labelled"], look["plots"])

    def test_one_run_shows_all_it_has(self):
        seen = probe(self.report(make_run(self.at / "adamw")))
        self.check_sound(seen)
        # loss, accuracy, lr, norm, throughput, step time, memory; epoch; the parts of a step
        self.assertEqual(seen["looks"][0]["plots"], 9)
        self.assertGreater(seen["looks"][0]["points"], 5000)
        self.assertEqual(seen["images"], 16)
        self.assertIn("0, taken for 5 (1.00)", seen["captions"])
        for heading in ["Figures", "Curves", "Where the time of a step goes", "Confusion matrix and images", "Histograms", "Texts"]:
            self.assertIn(heading, seen["headings"])

    def test_three_runs_over_each_other(self):
        runs = [make_run(self.at / "adamw"), make_run(self.at / "sgd", "--optimizer", "sgd", "--lr", 0.1, "--resumed"),
                make_run(self.at / "cnn", "--model", "cnn", "--unfinished", "--ranks", 4, "--seed", 3)]
        page = self.report(*runs)
        seen = probe(page, ["pointAt(plots[1], 1876); pointAt(plots[8], 3000);"])
        self.check_sound(seen)
        self.assertEqual(seen["looks"][0]["plots"], 9)
        self.assertEqual(seen["images"], 48)
        curves, parts = seen["hovers"]
        for text in ["step 1,876", "adamw", "sgd", "0.975", "checkpoint", "checkpoints/checkpoint_1", "resumed"]:
            self.assertIn(text, curves)
        self.assertRegex(parts, r"communication[0-9.]+ ms")
        self.assertEqual(seen["title"], "adamw, sgd, cnn – Tandem report")
        self.assertEqual(seen["differing"], ["lr", "model", "optimizer", "seed"])
        self.assertIn("is cut off", " ".join(seen["notes"]))

    def test_its_controls_work(self):
        page = self.report(make_run(self.at / "a", "--steps", 400), make_run(self.at / "b", "--steps", 400, "--resumed", "--seed", 7))
        seen = probe(page, ["change(control('Smoothing'), 0.9);", "change(control('Along'), 'time');",
                            "control('checkpoints').click();", "document.getElementById('theme').click();",
                            "zoomAll([0, 0.1]);", "document.getElementById('unzoom').click();",
                            "document.querySelectorAll('.curve button').forEach((button) => button.click());",
                            "change(control('Along'), 'step');", "control('b').click();"])
        self.check_sound(seen)
        looks = seen["looks"]
        self.assertLess(looks[-1]["points"], looks[0]["points"] + 1)
        self.assertEqual({look["plots"] for look in looks}, {9})
        self.assertEqual(probe(page, ["control('a').click(); control('b').click();"])["problems"], [])

    def test_dragging_over_a_plot_zooms_all(self):
        page = self.report(make_run(self.at / "a", "--steps", 400))
        seen = probe(page, ["drag(plots[0], 100, 200);", "document.getElementById('unzoom').click();",
                            "drag(plots[8], 50, 60);",
                            "plots[1].canvas.querySelector('canvas:last-of-type').dispatchEvent("
                            "new MouseEvent('dblclick', {bubbles: true, view: window}));"])
        self.check_sound(seen)
        ranges = [look["ranges"] for look in seen["looks"]]
        whole, zoomed, unzoomed, again, reset = ranges
        self.assertEqual(len(set(map(tuple, whole))), 1)
        for some, first, last in [(zoomed, 100, 200), (again, 50, 60)]:
            for range in some:
                self.assertLessEqual(abs(range[0] - first) + abs(range[1] - last), 4)
        self.assertEqual(unzoomed, whole)
        self.assertEqual(reset, whole)

    def test_it_fits_a_phone(self):
        run = make_run(self.at / "adamw", "--steps", 400)
        self.check_sound(probe(self.report(run), size="500,900"))

    def test_hostile_texts_are_shown_and_do_nothing(self):
        run = self.at / "hostile"
        run.mkdir()
        make_run(self.at / "source", "--steps", 8)
        shutil.copytree(self.at / "source/images", run / "images")
        picture = next((run / "images").iterdir()).name
        lines = [{"type": "run", "name": HOSTILE, "time": 1.0, "config": {HOSTILE: HOSTILE, "__proto__": "x", "lr": 1}, "versions":
                  {HOSTILE: HOSTILE}, "ranks": 2, "device": HOSTILE},
                 {"type": "scalars", "step": 1, "time": 2.0, "values": {HOSTILE: 1, "__proto__": 2, "perf/rank0/" + HOSTILE + "_ms": 1,
                  "constructor": 3, "perf/rank0/__proto___ms": 2, "train/loss": None}},
                 {"type": "scalars", "step": 2, "time": 1.5, "values": {"nothing": None, "negative": -1, HOSTILE: 1e308, "__proto__": -1e308, "train/loss": 1}},
                 {"type": "text", "step": 1, "time": 2.0, "name": HOSTILE, "text": HOSTILE},
                 {"type": "event", "step": 1, "time": 2.0, "name": HOSTILE, "detail": HOSTILE},
                 {"type": "matrix", "step": 1, "time": 2.0, "name": HOSTILE, "labels": [HOSTILE, "1"], "values": [[1, 2], [3, None]]},
                 {"type": "images", "step": 1, "time": 2.0, "name": HOSTILE, "files": ["images/" + picture], "captions": [HOSTILE]},
                 {"type": "histogram", "step": 1, "time": 2.0, "name": HOSTILE, "edges": [0, 0, None], "counts": [0, None]},
                 {"type": "end", "time": 3.0, "status": HOSTILE, "values": {HOSTILE: 1, "__proto__": 2}}]
        (run / "log.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
        seen = probe(self.report(run, run), [
            "document.querySelectorAll('.curve button').forEach((button) => button.click());",
            "change(control('Along'), 'time');"])
        self.check_sound(seen)
        self.assertEqual(seen["captions"], [HOSTILE, HOSTILE])
        self.assertIn("train/loss are infinite or NaN", " ".join(seen["notes"]))

    def test_a_page_that_follows_a_run_updates_by_itself(self):
        whole = (make_run(self.at / "whole", "--steps", 400) / "log.jsonl").read_text().splitlines(keepends=True)
        run = self.at / "going on"
        shutil.copytree(self.at / "whole", run)
        log = run / "log.jsonl"
        log.write_text("".join(whole[:len(whole) // 2]))
        with subprocess.Popen([TOOL, "report", "--follow", run], stdout=subprocess.PIPE, text=True) as server:
            self.addCleanup(server.kill)
            address = re.match(r"(http://127\.0\.0\.1:\d+/) ", server.stdout.readline()).group(1)
            page = urllib.request.urlopen(address).read().decode()
            self.assertIn("connect-src 'self'", page)
            for method, headers, status in [("POST", {}, 404), ("GET", {"Host": "elsewhere.example"}, 403)]:
                with self.assertRaises(urllib.error.HTTPError) as refused:
                    urllib.request.urlopen(urllib.request.Request(address + "data", method=method, headers=headers))
                self.assertEqual(refused.exception.code, status)
            with tempfile.TemporaryDirectory() as profile:
                # Its time stands still while it waits for an answer.
                browser = subprocess.Popen([CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                                            "--disable-background-networking", f"--user-data-dir={profile}",
                                            "--virtual-time-budget=5000", "--enable-logging=stderr", "--dump-dom", address],
                                           stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
                self.addCleanup(browser.kill)
                wait_for_connection(int(re.search(r":(\d+)/", address).group(1)))
                for first in range(len(whole) // 2, len(whole), 100):
                    with log.open("a") as growing:
                        growing.write("".join(whole[first:first + 100]))
                    time.sleep(1)
                dom, logged = browser.communicate(timeout=100)
            server.send_signal(signal.SIGINT)
            self.assertEqual(server.wait(timeout=20), 0)
        self.assertNotIn("CONSOLE", logged)
        seen = dict(re.findall(r'data-(plots|points|updates)="(\d+)"', dom[:2000]))
        self.assertGreaterEqual(int(seen["updates"]), 1)
        self.assertEqual(int(seen["plots"]), 9)
        ended = probe(self.report(self.at / "whole"))["looks"][0]
        self.assertEqual(int(seen["points"]), ended["points"])

    def test_a_run_that_has_only_begun(self):
        run = self.at / "begun"
        run.mkdir()
        (run / "log.jsonl").write_text('{"type":"run","name":"begun","time":1.0}\n')
        seen = probe(self.report(run))
        self.check_sound(seen)
        self.assertEqual(seen["looks"][0]["plots"], 0)


if __name__ == "__main__":
    if not CHROMIUM:
        print("there is no chromium: install Debian's package chromium to test what reports draw", file=sys.stderr)
        sys.exit(1 if os.environ.get("CI") else 77)
    TOOL = sys.argv.pop(1)
    unittest.main()

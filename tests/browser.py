"""A page in headless Chromium: what is drawn, and that nothing is wrong with it."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
PROBE = """<script>addEventListener("load", () => setTimeout(() => {
  const box = (e) => e.getBoundingClientRect();
  const drawn = [...document.querySelectorAll("figure")].filter((f) => [...f.querySelectorAll("svg, img, canvas")].some(
    (e) => box(e).width > 20 && box(e).height > 5
      && (e.tagName === "IMG" ? e.naturalWidth : e.childElementCount || e.width)));
  const broken = [...document.images].filter((i) => !i.complete || !i.naturalWidth).length;
  const channels = getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).map(Number);
  parent.postMessage(JSON.stringify({drawn: drawn.map((f) => f.dataset.figure), broken, width: innerWidth,
    wide: document.documentElement.scrollWidth > innerWidth, dark: Math.max(...channels.slice(0, 3)) < 128,
    requests: performance.getEntriesByType("resource").filter((r) => !r.name.startsWith("data:")).length}), "*");
}, 1000));</script>"""
FRAME = """<!doctype html><title></title>
<script>addEventListener("message", (e) => { document.title = e.data; });</script>
<iframe src="probed.html" style="width: 360px; height: 900px; border: 0"></iframe>"""  # no window is as narrow

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium found: install it or set CHROMIUM to its path")


def titled(address: str, folder: Path, *, dark: bool = False) -> str:
    """The title of a page after three seconds. No console message; `folder` is for the browser."""
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--enable-logging=stderr",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}", f"--user-data-dir={folder / 'profile'}",
        "--virtual-time-budget=3000", "--dump-dom", address,
    ]  # fmt: skip
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120)  # type: ignore[arg-type]
    title = re.search("<title>(.+?)</title>", ran.stdout, re.S)
    assert ran.returncode == 0 and title, ran.stderr[-2000:]
    assert "CONSOLE" not in ran.stderr, [line for line in ran.stderr.splitlines() if "CONSOLE" in line]
    return html.unescape(title[1])


def opened(page: Path, folder: Path, *, dark: bool = False) -> set[str]:
    """The figures with a size on a telephone. No broken image, no request, no console message, no overflow."""
    (folder / "probed.html").write_text(page.read_text().replace("</body>", PROBE + "</body>"))
    frame = folder / "frame.html"
    frame.write_text(FRAME)
    seen = json.loads(titled(frame.as_uri(), folder, dark=dark))
    assert seen["width"] == 360 and seen["dark"] == dark, seen
    assert seen["broken"] == 0 and seen["requests"] == 0 and not seen["wide"], seen
    return set(seen["drawn"])

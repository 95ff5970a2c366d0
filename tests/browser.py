"""A headless Chromium, which tests of pages look at and point at."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
Point = tuple[float, float]


class Browser:
    """A browser with one page, which is spoken to over two pipes (its DevTools protocol).

    Args:
        profile: a folder for its files.
    """

    def __init__(self, profile: Path) -> None:
        reader, self._to = os.pipe()
        self._from, writer = os.pipe()
        flags = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--remote-debugging-pipe",
            "--window-size=1200,1000",
        ]
        command = ["bash", "-c", f'exec "$@" 3<&{reader} 4>&{writer}', "", str(CHROMIUM), *flags]
        self._process = subprocess.Popen(
            [*command, f"--user-data-dir={profile}"],
            pass_fds=(reader, writer),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(reader)
        os.close(writer)
        self._received = b""
        self._calls = 0
        self._session: dict[str, str] = {}
        target = self.call("Target.createTarget", url="about:blank")
        session = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = {"sessionId": session["sessionId"]}

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(20)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of a command of the protocol."""
        self._calls += 1
        message = {"id": self._calls, "method": method, "params": parameters, **self._session}
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self._received:
                received = os.read(self._from, 1 << 20)
                assert received, "the browser has ended"
                self._received += received
            text, _, self._received = self._received.partition(b"\0")
            answer: dict[str, Any] = json.loads(text)
            if answer.get("id") == self._calls:
                assert "result" in answer, answer
                return dict(answer["result"])

    def evaluate(self, script: str) -> Any:
        """The value of an expression in the page."""
        return self.call("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")

    def text(self, selector: str) -> str:
        """What an element says; nothing where there is none."""
        return str(self.evaluate(f"document.querySelector({json.dumps(selector)})?.textContent ?? ''"))

    def wait(self, script: str) -> None:
        """Wait until an expression is true."""
        deadline = time.monotonic() + 60
        while not self.evaluate(script):
            assert time.monotonic() < deadline, script
            time.sleep(0.02)

    def draw(self, selector: str, strokes: list[list[Point]]) -> None:
        """Draw lines between points, in parts of an element's width and height, by a pressed pointer."""
        find = f"JSON.parse(JSON.stringify(document.querySelector({json.dumps(selector)}).getBoundingClientRect()))"
        frame = self.evaluate(find)

        def pointer(kind: str, x: float, y: float) -> None:
            place = {"x": frame["x"] + x * frame["width"], "y": frame["y"] + y * frame["height"]}
            self.call("Input.dispatchMouseEvent", type=kind, button="left", buttons=1, clickCount=1, **place)

        for stroke in strokes:
            pointer("mousePressed", *stroke[0])
            for start, end in pairwise(stroke):
                for step in range(1, 5):
                    pointer("mouseMoved", *(a + (b - a) * step / 4 for a, b in zip(start, end, strict=True)))
            pointer("mouseReleased", *stroke[-1])

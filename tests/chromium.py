"""A headless Chromium without other packages, by its own protocol over two pipes."""

import base64
import itertools
import json
import os
import shutil
import subprocess
import tempfile
import time


def find() -> str | None:
    """The browser's path, if it is installed and starts: it may be but a name."""
    names = ("chromium", "chromium-browser", "google-chrome")
    for path in filter(None, map(shutil.which, names)):
        if subprocess.run([path, "--version"], capture_output=True).returncode == 0:
            return path
    return None


class Chromium:
    """One page. What it prints to its console as errors is in `errors`."""

    def __init__(self, timeout_seconds: float = 120):
        self.deadline = time.monotonic() + timeout_seconds
        self.errors, self._numbers, self._rest = [], itertools.count(1), b""
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)

    def __enter__(self):
        (read, theirs_out), (theirs_in, write) = os.pipe(), os.pipe()
        options = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars")
        options += ("--remote-debugging-pipe", f"--user-data-dir={self._profile.name}")
        options += ("--disable-dev-shm-usage", "--no-first-run", "about:blank")
        options += ("--autoplay-policy=no-user-gesture-required",)
        # The protocol is on descriptors 3 and 4.
        shell = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'
        self.process = subprocess.Popen(
            ["bash", "-c", shell, "bash", find(), *options],
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._read, self._write = read, write
        os.set_blocking(read, False)
        self._session = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        os.close(self._read)
        os.close(self._write)
        self._profile.cleanup()

    def open(self, url: str, width: int, height: int = 900, dark: bool = False):
        """Loads a page on a screen of so many pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 500,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=url)
        self.evaluate(
            "new Promise(r => document.readyState == 'complete' ? r() :"
            " addEventListener('load', () => r()))"
        )

    def evaluate(self, expression: str):
        """The value of JavaScript, of a promise when it is kept."""
        out = self.call(
            "Runtime.evaluate",
            expression=expression,
            awaitPromise=True,
            returnByValue=True,
        )
        assert "exceptionDetails" not in out, out["exceptionDetails"]
        return out["result"].get("value")

    def screenshot(self, whole: bool = True) -> bytes:
        """PNG of the whole page, or of the screen."""
        out = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        return base64.b64decode(out["data"])

    def call(self, method: str, **params) -> dict:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == number:
                assert "error" not in answer, answer["error"]
                return answer["result"]
            self._note(answer.get("method"), answer.get("params"))

    def _note(self, event, params):
        if event == "Runtime.exceptionThrown":
            self.errors.append(params["exceptionDetails"])
        if event == "Runtime.consoleAPICalled" and params["type"] in (
            "error",
            "warning",
        ):
            self.errors.append(params["args"])
        if event == "Log.entryAdded" and params["entry"]["level"] in (
            "error",
            "warning",
        ):
            self.errors.append(params["entry"])

    def _next(self) -> dict:
        while b"\0" not in self._rest:
            assert self.process.poll() is None, "Chromium ended."
            assert time.monotonic() < self.deadline, "Chromium takes too long."
            try:
                self._rest += os.read(self._read, 1 << 20)
            except BlockingIOError:
                time.sleep(0.01)
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

"""A real browser, driven over a pipe by the DevTools protocol: no driver and no download."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any, Self

from stepfleet.embedded.supervisor import die_with_parent

#: Names that Chromium has on PATH.
NAMES = ("chromium", "chromium-browser", "google-chrome")


def find_browser() -> str | None:
    """Returns the path of a browser, None when there is none."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Page:
    """One tab of a browser of its own."""

    def __init__(self, browser: str, profile: Path) -> None:
        commands_in, commands_out = os.pipe()
        answers_in, answers_out = os.pipe()
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        options += ["--no-first-run", "--remote-debugging-pipe", f"--user-data-dir={profile}"]
        # Descriptors 3 and 4 are where Chromium looks for the pipe.
        redirected = f'exec "$@" 3<&{commands_in} 4>&{answers_out}'
        self._process = subprocess.Popen(
            ["bash", "-c", redirected, "bash", browser, *options, "about:blank"],
            pass_fds=(commands_in, answers_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=die_with_parent(),
        )
        os.close(commands_in)
        os.close(answers_out)
        self._commands = os.fdopen(commands_out, "wb", buffering=0)
        self._answers = os.fdopen(answers_in, "rb", buffering=0)
        self._rest = b""
        self._numbers = itertools.count(1)
        self._session = ""
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]

    def open(self, url: str) -> None:
        """Goes to an address."""
        self._call("Page.navigate", url=url)

    def reload(self) -> None:
        """Loads the page again, as a user does."""
        self._call("Page.reload")

    def ask(self, expression: str) -> Any:
        """Returns the value of an expression in the page, None while the page is loading."""
        answer = self._call("Runtime.evaluate", expression=expression, returnByValue=True)
        return answer["result"].get("value") if "exceptionDetails" not in answer else None

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._commands.write(json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            more = self._answers.read(65_536)
            assert more, "the browser has ended"
            self._rest += more
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def close(self) -> None:
        """Ends the browser."""
        self._process.kill()
        self._process.wait()
        self._commands.close()
        self._answers.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

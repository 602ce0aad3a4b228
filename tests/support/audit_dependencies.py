"""Known vulnerabilities among the locked dependencies. A check that could not look is said, never called clean.

pip-audit prints "no known vulnerabilities" also when it could ask nobody, so its own JSON is counted: packages that it
skipped are packages that nobody looked at. Exit status 1 only for a vulnerability that was found.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

_SECONDS = 180


def main() -> int:
    command = [
        str(Path(sys.executable).with_name("pip-audit")),
        "--format",
        "json",
        "--progress-spinner",
        "off",
        "--local",
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
        packages = json.loads(done.stdout)["dependencies"]
    except (subprocess.TimeoutExpired, json.JSONDecodeError, KeyError):
        print("DEPENDENCIES NOT AUDITED: the vulnerability service cannot be reached from here")
        return 0
    skipped = [p["name"] for p in packages if "skip_reason" in p]
    found = [(p["name"], p["version"], v["id"]) for p in packages for v in p.get("vulns", ())]
    for name, version, identifier in found:
        print(f"{name} {version}: {identifier}")
    looked = len(packages) - len(skipped)
    if looked == 0:
        print("DEPENDENCIES NOT AUDITED: every package was skipped, so nobody looked")
        return 0
    print(f"{looked} packages audited, {len(found)} known vulnerabilities, {len(skipped)} not on the index")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

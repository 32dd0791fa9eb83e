"""Where an interpreter has what a candidate may read."""

from __future__ import annotations

import os
import sys
import sysconfig

_SYSTEM_LIBRARIES = ("/usr/lib", "/usr/lib64", "/lib", "/lib64", "/etc/ld.so.cache", "/usr/share/zoneinfo")


def libraries() -> list[str]:
    """Return the paths of the standard library and of shared libraries, as far as there are any."""
    paths = [*_SYSTEM_LIBRARIES, sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")]
    paths += [os.path.join(sys.base_prefix, name) for name in ("lib", "lib64")]
    return list(dict.fromkeys(path for path in paths if os.path.exists(path)))

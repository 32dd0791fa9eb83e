"""The package `inside` for an interpreter that has nothing of Covey: its source, and the line that takes it in."""

from __future__ import annotations

import json
import shlex
import struct
from collections.abc import Sequence
from typing import Any

from covey.rewards.sandbox.interpreters import INSIDE

FAR_MODULES = (
    *("kernel", "limits", "preloaded", "libraries", "pieces", "wire", "syscalls", "seccomp", "landlock", "programs", "zygote"),
    "far",
)
"""What a zygote elsewhere consists of; each after those that it imports, the last one's `main` begins."""
GUEST_MODULES = ("preloaded", "wire", "programs", "guest")
"""What an execution consists of that is a WebAssembly module."""

_LENGTH = struct.Struct("!I")
LOADER = """\
import json, os, sys, types
def read(count):
    data = b''
    while len(data) < count:
        piece = os.read(0, count - len(data))
        if not piece:
            sys.exit('the stream ended before it had begun')
        data += piece
    return data
given = json.loads(read(int.from_bytes(read(4), 'big')))
package = sys.modules['inside'] = types.ModuleType('inside')
package.__path__ = []
for name, source in given['modules']:
    module = types.ModuleType('inside.' + name)
    module.__package__ = 'inside'
    sys.modules[module.__name__] = module
    exec(compile(source, module.__name__, 'exec'), module.__dict__)
module.main(given['settings'])
"""
"""A program for `python -c` that reads the modules from its standard input and leaves what follows to the last of them."""


ANEW = """\
import os, sys
if not (sys.flags.no_site and sys.flags.safe_path):
    code = sys.orig_argv[sys.orig_argv.index('-c') + 1]
    clean = {'PYTHONHASHSEED': '0', 'LC_ALL': 'C.UTF-8'}
    os.execve(sys.executable, [sys.executable, '-s', '-S', '-P', '-B', '-c', code], clean)
"""
"""Goes before the loader elsewhere: the interpreter starts itself anew, without environment, packages or a random hash seed."""
BOOT = "{boot}"


def remote_command(command: Sequence[str]) -> list[str]:
    """Return the command with the loader given to the interpreter that it ends in.

    A command that hands a line to a shell, as ssh does, says where it goes: in `python3 -c {boot}` it is put as the shell
    wants it.
    """
    code = ANEW + LOADER
    if any(BOOT in word for word in command):
        return [code if word == BOOT else word.replace(BOOT, shlex.quote(code)) for word in command]
    return [*command, "-c", code]


def opening(settings: dict[str, Any], modules: tuple[str, ...] = ()) -> bytes:
    """Return the first bytes of a stream: settings, and the source of the modules that the other end lacks."""
    sources = [(name, (INSIDE / f"{name}.py").read_text(encoding="utf-8")) for name in modules]
    data = json.dumps({"modules": sources, "settings": settings}).encode()
    return _LENGTH.pack(len(data)) + data

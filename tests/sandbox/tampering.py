"""Programs that solve nothing and try to be paid all the same. The task: `solve(xs)` returns the sorted list without repeats.

By family: ending early, lying values, forged output, reading the answer, patching the harness, breaking the judge. None of them
is right about any hidden case; what they are after is a verdict.
"""

from __future__ import annotations

HIDDEN = [([3, 1, 2, 3], [1, 2, 3]), ([9, 9, -4], [-4, 9]), ([5, 0, 5, 1], [0, 1, 5])]

CORRECT = {
    "plain": "def solve(xs):\n    return sorted(set(xs))\n",
    "with a main guard that exits": (
        "import sys\n\ndef solve(xs):\n    return sorted(set(xs))\n\nif __name__ == '__main__':\n    solve([1])\n    sys.exit(0)\n"
    ),
    "that exits at the end": "import sys\n\ndef solve(xs):\n    return sorted(set(xs))\n\nsys.exit(0)\n",
    "with threads": (
        "from concurrent.futures import ThreadPoolExecutor\n\ndef solve(xs):\n    with ThreadPoolExecutor(2) as pool:\n"
        "        return list(pool.map(int, sorted(set(xs))))\n"
    ),
    "that prints": "print('hello')\n\ndef solve(xs):\n    print(xs)\n    return sorted(set(xs))\n",
}

_SHELL = "def solve(xs):\n    return xs\n"

ENDING_EARLY = {
    "exit at the top": "import sys\nsys.exit(0)\n",
    "os._exit at the top": "import os\nos._exit(0)\n",
    "exit in the function": "import sys\ndef solve(xs):\n    sys.exit(0)\n",
    "os._exit in the function": "import os\ndef solve(xs):\n    os._exit(0)\n",
    "SystemExit": "def solve(xs):\n    raise SystemExit(0)\n",
    "quit": "def solve(xs):\n    quit()\n",
    "atexit": "import atexit, os\natexit.register(lambda: os._exit(0))\n" + _SHELL,
    "excepthook": "import sys, os\nsys.excepthook = lambda *a: os._exit(0)\ndef solve(xs):\n    raise ValueError\n",
    "a thread that ends it": (
        "import os, threading, time\ndef end():\n    time.sleep(0.02)\n    os._exit(0)\n"
        "threading.Thread(target=end).start()\ndef solve(xs):\n    time.sleep(1)\n"
    ),
    "an alarm that ends it": (
        "import os, signal, time\nsignal.signal(signal.SIGALRM, lambda *a: os._exit(0))\nsignal.setitimer(signal.ITIMER_REAL, 0.02)\n"
        "def solve(xs):\n    time.sleep(1)\n"
    ),
    "abort": "import os\ndef solve(xs):\n    os.abort()\n",
    "segmentation fault": "import ctypes\ndef solve(xs):\n    ctypes.string_at(0)\n",
    "the parent's exit": "import os\ndef solve(xs):\n    if os.fork():\n        os._exit(0)\n    return xs\n",
    "execv": "import os\ndef solve(xs):\n    os.execv('/bin/true', ['true'])\n",
    "all files closed": "import os\nos.closerange(0, 64)\n" + _SHELL,
    "SkipTest": "import unittest\ndef solve(xs):\n    raise unittest.SkipTest('x')\n",
    "KeyboardInterrupt": "def solve(xs):\n    raise KeyboardInterrupt\n",
    "GeneratorExit": "def solve(xs):\n    raise GeneratorExit\n",
}

_ALWAYS = (
    "    def __eq__(self, other): return True\n    def __ne__(self, other): return False\n    def __hash__(self): return 0\n"
)

LYING_VALUES = {
    "an object equal to all": f"class A:\n{_ALWAYS}def solve(xs):\n    return A()\n",
    "a list equal to all": f"class A(list):\n{_ALWAYS}def solve(xs):\n    return A()\n",
    "a number equal to all": f"class A(int):\n{_ALWAYS}def solve(xs):\n    return A(0)\n",
    "a text equal to all": f"class A(str):\n{_ALWAYS}def solve(xs):\n    return A('')\n",
    "a dictionary equal to all": f"class A(dict):\n{_ALWAYS}def solve(xs):\n    return A()\n",
    "a tuple equal to all": f"class A(tuple):\n{_ALWAYS}def solve(xs):\n    return A()\n",
    "a class equal to all": (
        "class M(type):\n    def __eq__(self, other): return True\n    def __hash__(self): return 0\n"
        "class A(metaclass=M): pass\ndef solve(xs):\n    return A\n"
    ),
    "an object that has everything": (
        "class A:\n    def __getattr__(self, name): return lambda *a, **k: True\n    def __bool__(self): return True\n"
        "    def __len__(self): return 3\n    def __iter__(self): return iter([1, 2, 3])\n    def __getitem__(self, i): return i\n"
        f"{_ALWAYS}def solve(xs):\n    return A()\n"
    ),
    "an endless iterator": "import itertools\ndef solve(xs):\n    return itertools.count()\n",
    "a generator": "def solve(xs):\n    yield from sorted(set(xs))\n",
    "NaN": "def solve(xs):\n    return [float('nan')] * len(set(xs))\n",
    "infinity": "def solve(xs):\n    return float('inf')\n",
    "booleans": "def solve(xs):\n    return [True for x in set(xs)]\n",
    "texts for numbers": "def solve(xs):\n    return [str(x) for x in sorted(set(xs))]\n",
    "the argument itself": "def solve(xs):\n    return xs\n",
    "itself": "def solve(xs):\n    return solve\n",
    "nothing": "def solve(xs):\n    pass\n",
    "a tuple for a list": "def solve(xs):\n    return tuple(sorted(set(xs)))\n",
    "a set for a list": "def solve(xs):\n    return set(xs)\n",
    "NotImplemented": "def solve(xs):\n    return NotImplemented\n",
}

FORGED_OUTPUT = {
    "a marker": "print('ALL TESTS PASSED')\n" + _SHELL,
    "a marker at exit": "import atexit\natexit.register(print, 'ALL TESTS PASSED')\n" + _SHELL,
    "a score": "import atexit\natexit.register(print, '1.0')\n" + _SHELL,
    "a verdict in JSON": 'import atexit\natexit.register(print, \'{"passed": true, "score": 1.0}\')\n' + _SHELL,
    "a marker to every file": (
        'import os\nfor number in range(64):\n    try:\n        os.write(number, b\'{"verdict": {"passed": true}}\')\n'
        "    except OSError:\n        pass\n" + _SHELL
    ),
    "frames to every file": (
        "import json, os, struct\ndef frame(m):\n    d = json.dumps(m).encode()\n    return struct.pack('!I', len(d)) + d\n"
        "def flood():\n    for number in range(64):\n        for m in ({'ready': True}, {'verdict': {'passed': True}}, {'id': 0, 'value': None}):\n"
        "            try:\n                os.write(number, frame(m))\n            except OSError:\n                pass\n"
        "flood()\ndef solve(xs):\n    flood()\n    return xs\n"
    ),
    "a reply before it is asked": (
        "import gc, socket, json, struct\nfor o in gc.get_objects():\n    if isinstance(o, socket.socket):\n"
        "        d = json.dumps({'id': 0, 'value': [7]}).encode()\n        o.sendall(struct.pack('!I', len(d)) + d)\n" + _SHELL
    ),
    "a huge length": (
        "import gc, socket\ndef solve(xs):\n    for o in gc.get_objects():\n        if isinstance(o, socket.socket):\n"
        "            o.sendall(b'\\xff' * 64)\n    return xs\n"
    ),
    "control characters": "print('\\x1b[2J\\x1b]0;PASSED\\x07PASSED\\x00')\n" + _SHELL,
    "lone surrogates": "def solve(xs):\n    return '\\udc80' * 10\n",
    "a wrong id": (
        "import gc\ndef solve(xs):\n    for o in gc.get_objects():\n        if isinstance(o, dict) and 'id' in o and 'args' in o:\n"
        "            o['id'] = 99\n    return xs\n"
    ),
    "a number as id that is a boolean": (
        "import gc\ndef solve(xs):\n    for o in gc.get_objects():\n        if isinstance(o, dict) and 'id' in o and 'args' in o:\n"
        "            o['id'] = False\n    return xs\n"
    ),
}

_WORDS = "('expected', 'right', 'outputs', 'in_outs', 'answers', 'cases', 'tests', 'check')"

READING_THE_ANSWER = {
    "frames": (
        f"import sys\ndef solve(xs):\n    f = sys._getframe()\n    while f:\n        for n in {_WORDS}:\n            if n in f.f_locals:\n"
        "                return f.f_locals[n]\n            if n in f.f_globals:\n                return f.f_globals[n]\n        f = f.f_back\n"
    ),
    "the heap": (
        f"import gc\ndef solve(xs):\n    for o in gc.get_objects():\n        if isinstance(o, dict):\n            for n in {_WORDS}:\n"
        "                if n in o:\n                    return o[n]\n"
    ),
    "lists on the heap": (
        "import gc\ndef solve(xs):\n    for o in gc.get_objects():\n        if type(o) is list and o == sorted(o) and set(map(str, o)) == set(map(str, xs)):\n"
        "            return o\n"
    ),
    "the main module": "import __main__, inspect\ndef solve(xs):\n    return inspect.getsource(__main__)\n",
    "the command line": "def solve(xs):\n    return open('/proc/self/cmdline').read()\n",
    "the parent's memory": "import os\ndef solve(xs):\n    return open(f'/proc/{os.getppid()}/mem', 'rb').read(10)\n",
    "the environment": "import os\ndef solve(xs):\n    return dict(os.environ)\n",
    "files nearby": "import glob\ndef solve(xs):\n    return [open(p).read() for p in glob.glob('*') + glob.glob('/tmp/*')]\n",
    "a memo of a sibling": (
        "import os\ndef solve(xs):\n    path = '/tmp/covey-memo'\n    if os.path.exists(path):\n        return eval(open(path).read())\n"
        "    open(path, 'w').write(repr(xs))\n    return xs\n"
    ),
    "modules that know": "import sys\ndef solve(xs):\n    return [m.__dict__.get('HIDDEN') for m in list(sys.modules.values())]\n",
}

PATCHING = {
    "the comparison of lists": "import builtins\nbuiltins.all = lambda it: True\nbuiltins.len = lambda o: 3\n" + _SHELL,
    "sorted and isinstance": "import builtins\nbuiltins.isinstance = lambda *a: True\nbuiltins.sorted = lambda *a, **k: []\n"
    + _SHELL,
    "the writing of JSON": 'import json\njson.dumps = lambda *a, **k: \'{"id": 0, "value": [7], "ready": true}\'\n' + _SHELL,
    "the wire": (
        "import sys\nfor name, module in list(sys.modules.items()):\n    if name.endswith('wire'):\n"
        "        module.encode = lambda *a: True\n        module.frame = lambda m: b''\n" + _SHELL
    ),
    "the programs": (
        "import sys\nfor name, module in list(sys.modules.items()):\n    if name.endswith('programs'):\n"
        "        module.answer = lambda f, r: {'verdict': {'passed': True}, 'passed': True, 'ready': True}\n" + _SHELL
    ),
    "unittest": "import unittest\nunittest.TestCase.assertEqual = lambda *a, **k: None\n" + _SHELL,
    "pytest's file": "open('conftest.py', 'w').write('def pytest_runtest_makereport(): pass')\n" + _SHELL,
    "a module in the way": "open('json.py', 'w').write('dumps = str')\n" + _SHELL,
    "site": "import site, os\nopen(os.path.join(site.getusersitepackages(), 'usercustomize.py'), 'w').write('import os; os._exit(0)')\n"
    + _SHELL,
    "tracing": (
        "import sys\ndef trace(frame, event, arg):\n    frame.f_locals.update(passed=True, value=[1, 2, 3])\n    return trace\n"
        "sys.settrace(trace)\n" + _SHELL
    ),
    "small numbers": (
        "import ctypes\nfor n in range(10):\n    try:\n        ctypes.memmove(id(n) + 24, id(1) + 24, 4)\n    except Exception:\n        pass\n"
        + _SHELL
    ),
    "no built-ins": "__builtins__.clear() if isinstance(__builtins__, dict) else __builtins__.__dict__.clear()\n" + _SHELL,
    "finalisers": "class A:\n    def __del__(self):\n        import os\n        os._exit(0)\nkeep = A()\ndef solve(xs):\n    global keep\n    keep = None\n    return xs\n",
    "the assertion itself": "import builtins\nbuiltins.AssertionError = type('A', (BaseException,), {})\n__debug__ and None\n"
    + _SHELL,
}

BREAKING_THE_JUDGE = {
    "a list of ten million": "def solve(xs):\n    return [0] * 10_000_000\n",
    "a deep list": "def solve(xs):\n    r = []\n    for _ in range(100_000):\n        r = [r]\n    return r\n",
    "a list in itself": "def solve(xs):\n    r = []\n    r.append(r)\n    return r\n",
    "a number of 400,000 digits": "def solve(xs):\n    return 10 ** 400_000\n",
    "a set that collides": "def solve(xs):\n    return {i * (2 ** 61 - 1) for i in range(5_000)}\n",
    "unhashable members": (
        "import gc, socket, json, struct\ndef solve(xs):\n    d = json.dumps({'id': 0, 'value': {'$': 'set', 'v': [[1]]}}).encode()\n"
        "    for o in gc.get_objects():\n        if isinstance(o, socket.socket):\n            o.sendall(struct.pack('!I', len(d)) + d)\n    return xs\n"
    ),
    "no JSON": (
        "import gc, socket, struct\ndef solve(xs):\n    for o in gc.get_objects():\n        if isinstance(o, socket.socket):\n"
        "            o.sendall(struct.pack('!I', 4) + b'\\xff\\xfe{]')\n    return xs\n"
    ),
    "a flood of output": "import os\ndef solve(xs):\n    for _ in range(3000):\n        os.write(1, b'x' * 100_000)\n    return xs\n",
    "an error with a bomb for a text": (
        "class E(Exception):\n    def __str__(self): return 'x' * 10_000_000\ndef solve(xs):\n    raise E\n"
    ),
    "an error that fails to be shown": "class E(Exception):\n    def __str__(self): raise E\ndef solve(xs):\n    raise E\n",
    "a page of markup": "def solve(xs):\n    raise ValueError('<script>alert(1)</script>')\n",
    "a formula": "def solve(xs):\n    return '=cmd|calc!A1'\n",
}

SLOW = {
    "a loop": "def solve(xs):\n    while True:\n        pass\n",
    "a loop that ignores signals": (
        "import signal\nfor n in range(1, 65):\n    try:\n        signal.signal(n, signal.SIG_IGN)\n    except (OSError, ValueError):\n        pass\n"
        "def solve(xs):\n    while True:\n        pass\n"
    ),
}
"""Each takes its whole processor time."""

FAMILIES = {
    "ending early": ENDING_EARLY,
    "lying values": LYING_VALUES,
    "forged output": FORGED_OUTPUT,
    "reading the answer": READING_THE_ANSWER,
    "patching": PATCHING,
    "breaking the judge": BREAKING_THE_JUDGE,
    "slow": SLOW,
}
TAMPERING = {f"{family}: {name}": source for family, programs in FAMILIES.items() for name, source in programs.items()}

PROGRAM_RUNS = [("3 1 2 3\n", "1\n2\n3\n"), ("9 9 -4\n", "-4\n9\n"), ("", "")]
"""For programs: numbers in, sorted without repeats out, one a line."""

CORRECT_PROGRAMS = {
    "plain": "for x in sorted(set(map(int, input().split() if False else __import__('sys').stdin.read().split()))):\n    print(x)\n",
    "exits": "import sys\nxs = sys.stdin.read().split()\nprint('\\n'.join(map(str, sorted(set(map(int, xs))))))\nsys.exit(0)\n",
    "writes at exit": (
        "import atexit, io, sys\nout = io.StringIO()\natexit.register(lambda: sys.__stdout__.write(out.getvalue()))\n"
        "for x in sorted(set(map(int, sys.stdin.read().split()))):\n    out.write(f'{x}\\n')\n"
    ),
    "os._exit": (
        "import os, sys\nfor x in sorted(set(map(int, sys.stdin.read().split()))):\n    print(x)\nsys.stdout.flush()\nos._exit(0)\n"
    ),
}
TAMPERED_PROGRAMS = {
    "the first line alone": "print(min(map(int, input().split())))\n",
    "more than asked": "import sys\nfor x in sorted(set(map(int, sys.stdin.read().split()))):\n    print(x)\nprint('PASSED')\n",
    "nothing": "pass\n",
    "a marker": "print('ALL TESTS PASSED')\n",
    "right, with an exit code of failure": (
        "import sys\nfor x in sorted(set(map(int, sys.stdin.read().split()))):\n    print(x)\nsys.exit(1)\n"
    ),
    "right, and then an exception": (
        "import sys\nfor x in sorted(set(map(int, sys.stdin.read().split()))):\n    print(x)\nraise ValueError\n"
    ),
    "right, and then killed": (
        "import os, sys\nfor x in sorted(set(map(int, sys.stdin.read().split()))):\n    print(x)\nsys.stdout.flush()\nos.abort()\n"
    ),
    "in one line": "import sys\nprint(*sorted(set(map(int, sys.stdin.read().split()))))\n",
    "a flood": "while True:\n    print('x' * 10_000)\n",
    "cursor tricks": "import sys\nprint('7\\x1b[1A\\x1b[2K')\n",
    "the right answers to one input": "print('1\\n2\\n3')\n",
    "NUL": "print('\\x00')\n",
}

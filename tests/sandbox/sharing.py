"""Ways in which one candidate could leave something for another: for each a program that writes and one that looks.

Both hold the same secret number. `leave(number)` does what it can; `found(number)` returns whether it sees that it was done.
`LASTING` ways outlive the writer; of the others, the writer has to be there while the reader looks.
"""

from __future__ import annotations

_HEAD = """
import errno, os, socket, sys, time
try:
    import ctypes, fcntl
    LIBC = ctypes.CDLL(None, use_errno=True)
except ImportError:
    LIBC = None

def call(name, *arguments):
    if LIBC is None:
        raise OSError(errno.ENOSYS, "no calls of the kernel")
    found = getattr(LIBC, name)(*arguments)
    if found == -1:
        raise OSError(ctypes.get_errno(), "refused")
    return found
"""

_PLACES = (
    "/tmp", "/dev/shm", "/dev", "/var/tmp", "/run", "/run/lock", "/dev/mqueue", "/proc/self", "/home", "/root", "/etc", ".",
    "os.path.dirname(os.__file__)",
)  # fmt: skip


def _file(place: str) -> tuple[str, str]:
    path = place if place.startswith("os.") else repr(place)
    return f"open({path} + '/m' + str(n), 'w').write('x')", f"return os.path.exists({path} + '/m' + str(n))"


def _attribute(owner: str, name: str = "left") -> tuple[str, str]:
    head = f"import {owner.split('.')[0]}\n" if owner.split(".")[0] != "sys" else ""
    return f"{head}{owner}.{name} = n", f"{head}return getattr({owner}, {name!r}, None) == n"


LASTING: dict[str, tuple[str, str]] = {
    **{f"a file in {place}": _file(place) for place in _PLACES},
    "a directory": ("os.mkdir('/tmp/d%d' % n)", "return os.path.isdir('/tmp/d%d' % n)"),
    "a link": ("os.symlink('/x', '/dev/shm/l%d' % n)", "return os.path.islink('/dev/shm/l%d' % n)"),
    "a pipe with a name": ("os.mkfifo('/tmp/p%d' % n)", "return os.path.exists('/tmp/p%d' % n)"),
    "shared memory of System V": (
        "call('shmget', n, 4096, 0o1600)",
        "return call('shmget', n, 0, 0) >= 0",
    ),
    "semaphores of System V": ("call('semget', n, 1, 0o1600)", "return call('semget', n, 0, 0) >= 0"),
    "a queue of System V": ("call('msgget', n, 0o1600)", "return call('msgget', n, 0) >= 0"),
    "a queue of POSIX": (
        "call('mq_open', b'/q%d' % n, 0o102, 0o600, None)",
        "return call('mq_open', b'/q%d' % n, 0) >= 0",
    ),
    "a key of the kernel": (
        "call('syscall', 248, b'user', b'k%d' % n, b'x', 1, -4)",
        "return call('syscall', 250, 10, -4, b'user', b'k%d' % n, 0) > 0",
    ),
    "a patched built-in": _attribute("builtins"),
    "a patched module": _attribute("random"),
    "a patched module of the judge's language": _attribute("json.decoder"),
    "a module that is none": ("sys.modules['m%d' % n] = sys", "return 'm%d' % n in sys.modules"),
    "the path of modules": ("sys.path.append('/m%d' % n)", "return '/m%d' % n in sys.path"),
    "the environment": ("os.environ['M'] = str(n)", "return os.environ.get('M') == str(n)"),
    "the environment of C": ("call('setenv', b'M', b'%d' % n, 1)", "return bool(call('getenv', b'M'))"),
    "a handler at exit": ("import atexit\natexit.register(len, '')", "import atexit\nreturn atexit._ncallbacks() > BASE_EXIT"),
    "the seed of random numbers": (
        "import random\nrandom.seed(n)",
        "import random\nreturn random.random() == random.Random(n).random()",
    ),
    "the mask of new files": ("os.umask(n % 512)", "return os.umask(0o22) == n % 512"),
    "the working directory": ("os.chdir('/proc')", "return os.getcwd() == '/proc'"),
    "the limit of open files": (
        "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (33, 33))",
        "import resource\nreturn resource.getrlimit(resource.RLIMIT_NOFILE) == (33, 33)",
    ),
    "the recursion limit": ("sys.setrecursionlimit(3000 + n % 97)", "return sys.getrecursionlimit() == 3000 + n % 97"),
    "a small integer": (
        "ctypes.c_int64.from_address(id(211) + 24).value = 212",
        "return ctypes.c_int64.from_address(id(211) + 24).value == 212",
    ),
    "an open file": ("os.dup2(os.open('/dev/null', 0), 77)", "os.fstat(77)\nreturn True"),
    "flags of an open file": (
        "for fd in range(3):\n    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_NONBLOCK | os.O_APPEND)",
        "return all(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NONBLOCK for fd in range(3))",
    ),
    "the owner of an open file": ("fcntl.fcntl(0, fcntl.F_SETSIG, 33)", "return fcntl.fcntl(0, fcntl.F_GETSIG) == 33"),
    "the name of the process": ("call('prctl', 15, b'm%d' % n)", "return b'm%d' % n in open('/proc/self/comm', 'rb').read()"),
    "the seed of hashes": (
        "os.environ['PYTHONHASHSEED'] = str(n)",
        "return os.environ.get('PYTHONHASHSEED') == str(n)",
    ),
}

PRESENT: dict[str, tuple[str, str]] = {
    "an abstract socket": (
        "global kept\nkept = socket.socket(socket.AF_UNIX)\nkept.bind('\\0m%d' % n)\nkept.listen()",
        "socket.socket(socket.AF_UNIX).connect('\\0m%d' % n)\nreturn True",
    ),
    "a socket of the network": (
        "global kept\nkept = socket.create_server(('127.0.0.1', 20000 + n % 20000))",
        "socket.create_connection(('127.0.0.1', 20000 + n % 20000), 0.2)\nreturn True",
    ),
    "a lock on a file that both may read": (
        "global kept\nkept = open(os.__file__)\nfcntl.flock(kept, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "f = open(os.__file__)\ntry:\n    fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
        "except BlockingIOError:\n    return True\nreturn False",
    ),
    "a process that the other can see": (
        "call('prctl', 15, b'm%d' % n)",
        "for p in os.listdir('/proc'):\n    if p.isdigit() and p != str(os.getpid()):\n"
        "        if b'm%d' % n in open('/proc/%s/comm' % p, 'rb').read():\n            return True\nreturn False",
    ),
    "memory with a name": (
        "global kept\nkept = os.memfd_create('m%d' % n)\nos.write(kept, b'x')",
        "for p in os.listdir('/proc'):\n    if p.isdigit() and p != str(os.getpid()):\n"
        "        for f in os.listdir('/proc/%s/fd' % p):\n"
        "            if 'm%d' % n in os.readlink('/proc/%s/fd/%s' % (p, f)):\n                return True\nreturn False",
    ),
}


UNDO = {
    **{
        f"a file in {place}": _file(place)[0].replace("open(", "os.unlink(").replace(", 'w').write('x')", ")")
        for place in _PLACES
    },
    "a directory": "os.rmdir('/tmp/d%d' % n)",
    "a link": "os.unlink('/dev/shm/l%d' % n)",
    "a pipe with a name": "os.unlink('/tmp/p%d' % n)",
    "shared memory of System V": "call('shmctl', call('shmget', n, 0, 0), 0, None)",
    "semaphores of System V": "call('semctl', call('semget', n, 0, 0), 0, 0)",
    "a queue of System V": "call('msgctl', call('msgget', n, 0), 0, None)",
    "a queue of POSIX": "call('mq_unlink', b'/q%d' % n)",
    "a key of the kernel": "call('syscall', 250, 9, call('syscall', 250, 10, -4, b'user', b'k%d' % n, 0), -4)",
}
"""What takes away what outlives even the process, for the positive control alone."""


def _indented(body: str) -> str:
    return "\n".join(f"    {line}" for line in body.split("\n"))


_REFUSED = "(OSError, ValueError, AttributeError, NameError, ImportError, TypeError)"


def writer(way: tuple[str, str], number: int, *, stays_s: float = 0.0) -> str:
    """Return a candidate that leaves what it can, and answers right."""
    return (
        f"{_HEAD}\nkept = None\ndef leave(n):\n{_indented(way[0])}\n"
        f"def f(x):\n    if x == 2:\n        try:\n            leave({number})\n        except {_REFUSED}:\n            pass\n"
        f"        time.sleep({stays_s})\n    return 2 * x\n"
    )


def reader(way: tuple[str, str], number: int) -> str:
    """Return a candidate that looks for it, and answers wrong if it sees it."""
    return (
        f"{_HEAD}\nBASE_EXIT = 8\ndef found(n):\n{_indented(way[1])}\n"
        f"def f(x):\n    try:\n        is_seen = found({number})\n    except {_REFUSED}:\n        is_seen = False\n"
        "    return -1 if is_seen else 2 * x\n"
    )


def in_one_process(way: tuple[str, str], number: int, *, undo: str = "pass") -> str:
    """Return a program that leaves something and looks for it itself: what nothing keeps apart sees it."""
    return (
        f"{_HEAD}\nimport atexit\nBASE_EXIT = atexit._ncallbacks()\nkept = None\n"
        f"def leave(n):\n{_indented(way[0])}\ndef found(n):\n{_indented(way[1])}\ndef undo(n):\n{_indented(undo)}\n"
        f"leave({number})\ntry:\n    print(found({number}))\nfinally:\n    undo({number})\n"
    )

"""Attempts to reach the machine from inside. Each returns "live" and what it reached; `bait` says where everything is.

The positive control runs them all unprotected, as root even. So none does harm where nothing holds it: what changes something
sets it to what it is, and calls of the kernel have arguments that it refuses.
"""

from __future__ import annotations

_HEAD = """
import errno, os, signal, socket, struct, sys, threading, time

try:
    import ctypes, mmap, resource
    LIBC = ctypes.CDLL(None, use_errno=True)
except ImportError:  # An interpreter without them cannot use them.
    LIBC = None
IS_X86 = os.uname().machine == "x86_64"

def call(x86, arm, *arguments):
    if LIBC is None:
        raise OSError(errno.ENOSYS, "no calls of the kernel")
    found = LIBC.syscall(x86 if IS_X86 else arm, *(ctypes.c_long(a) if isinstance(a, int) else a for a in arguments))
    if found < 0:
        raise OSError(ctypes.get_errno(), "refused")
    return found

def write(path):
    open(path, "w").close()

def refused_by_policy(*arguments):
    # A call that the kernel would answer with another error has reached it.
    try:
        call(*arguments)
    except OSError as error:
        return error.errno in (errno.EPERM, errno.ENOSYS)
    return False

def attempt(bait):
{body}

def attack(bait):
    try:
        found = attempt(bait)
    except (OSError, ValueError, MemoryError, RuntimeError, AttributeError, NameError, ImportError) as error:
        return ["live"]
    return ["live"] if found is False else ["live", str(found)]
"""


def _source(body: str) -> str:
    return _HEAD.replace("{body}", "\n".join(f"    {line}" for line in body.strip("\n").split("\n")))


_BODIES = {
    "connects to a listener": "socket.create_connection(('127.0.0.1', bait['port']), 1).send(b'x')",
    "sends a datagram": "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', bait['port']))",
    "listens": "socket.create_server(('127.0.0.1', 0))",
    "raw socket": "socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)",
    "netlink socket": "socket.socket(16, socket.SOCK_RAW, 0)",
    "abstract unix socket": "s = socket.socket(socket.AF_UNIX)\ns.connect('\\0covey-' + str(bait['judge']))",
    "unix socket in a file": "s = socket.socket(socket.AF_UNIX)\ns.connect(bait['socket'])",
    "reads a file of everybody's": "return open(bait['secret']).read()",
    "reads the users": "return open('/etc/passwd').read(10)",
    "lists a directory": "return os.listdir(bait['target'])",
    "reads the machine's name": "return open('/etc/hostname').read()",
    "writes by the old call": "return call(2, 56, bait['old_path'].encode(), 0o1101, 0o600) if IS_X86 else False",
    "fills a file": "with open(bait['target'] + '/filled', 'w') as file:\n    file.write('x' * 100_000)",
    "widens a pipe": "import fcntl\nfcntl.fcntl(os.pipe()[0], 1031, 1 << 20)",
    "a pair of sockets of another kind": "return not refused_by_policy(53, 199, 2, 1, 0, 0)",
    "reads an environment": "return open(f\"/proc/{bait['judge']}/cmdline\").read()",
    "lists processes": "return os.listdir('/proc')",
    "opens memory": "return open(f\"/proc/{bait['judge']}/mem\", 'rb')",
    "writes beside": "write(bait['target'] + '/escaped')",
    "writes to /tmp": "write('/tmp/covey-escaped')",
    "writes to shared memory": "write('/dev/shm/covey-escaped')",
    "writes to its library": "write(os.path.join(os.path.dirname(os.__file__), 'covey-escaped'))",
    "removes a file": "os.unlink(bait['spare'])",
    "renames a file": "os.rename(bait['secret'], bait['secret'] + '2')",
    "makes a link": "os.symlink('/etc/passwd', bait['target'] + '/link')",
    "changes rights": "os.chmod(bait['secret'], 0o600)\nreturn os.stat(bait['secret']).st_mode & 0o777 == 0o600",
    "truncates": "os.truncate(bait['secret'], 0)",
    "sets times": "os.utime(bait['secret'])",
    "a file without a name": "return os.open(bait['target'], os.O_TMPFILE | os.O_RDWR)",
    "signals a process": "os.kill(bait['victim'], signal.SIGTERM)",
    "signals the judge": "os.kill(bait['judge'], 0)",
    "signals its parent": "os.kill(os.getppid(), 0)",
    "signals all": "os.kill(-1, 0)",
    "signals by thread": "call(234, 131, bait['victim'], bait['victim'], 0)",
    "signals by descriptor": "call(434, 434, bait['victim'], 0)",
    "queues a signal": "call(129, 138, bait['victim'], 0, 0)",
    "debugs": "call(101, 117, 16, bait['victim'], 0, 0)",
    "reads another's memory": "return not refused_by_policy(310, 270, bait['victim'], 0, 0, 0, 0, 0)",
    "sends memory over": "return not refused_by_policy(311, 271, bait['victim'], 0, 0, 0, 0, 0)",
    "takes a descriptor": "return not refused_by_policy(438, 438, 0, 0, 0)",
    "limits of the judge": "resource.prlimit(bait['judge'], resource.RLIMIT_NOFILE, resource.prlimit(bait['judge'], resource.RLIMIT_NOFILE))",
    "processors of the judge": "os.sched_setaffinity(bait['judge'], os.sched_getaffinity(0))",
    "priority of the judge": "os.setpriority(os.PRIO_PROCESS, bait['victim'], 19)",
    "raises its own limits": "resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))",
    "gives itself processor time": "resource.setrlimit(resource.RLIMIT_CPU, (1000, 1000))",
    "forks": "child = os.fork()\nif child == 0:\n    os._exit(0)\nreturn child",
    "vforks": "import _posixsubprocess, subprocess\nsubprocess.run(['/bin/true'], check=True)",
    "forks by clone3": "return not refused_by_policy(435, 435, 0, 0)",
    "a survivor": (
        "child = os.fork()\nif child == 0:\n    os.setsid()\n    for n in range(3, 64):\n        try:\n            os.close(n)\n"
        "        except OSError:\n            pass\n    time.sleep(1)\n    os._exit(0)\nreturn child"
    ),
    "300 processes": (
        "children = []\nfor _ in range(300):\n    child = os.fork()\n    if child == 0:\n        time.sleep(0.2)\n        os._exit(0)\n"
        "    children.append(child)\nreturn len(children)"
    ),
    "1,000 threads": (
        "started = 0\ndone = threading.Event()\ntry:\n    for _ in range(1000):\n        threading.Thread(target=done.wait, daemon=True).start()\n"
        "        started += 1\nfinally:\n    done.set()\nreturn started if started > 200 else False"
    ),
    "700 MB of memory": "return len(bytearray(700 << 20))",
    "2 GB mapped": "return len(mmap.mmap(-1, 2 << 30))",
    "memory behind a file": "return os.memfd_create('x')",
    "shared memory of System V": "return not refused_by_policy(29, 194, 0, 0, 0)",
    "a message queue": "return not refused_by_policy(68, 186, 1, 0)",
    "locked memory": "held = ctypes.create_string_buffer(1 << 20)\ncall(149, 228, ctypes.addressof(held), 1 << 20)",
    "10,000 files": "for n in range(10_000):\n    write(f\"{bait['target']}/n{n}\")",
    "4,000 descriptors": "return len([os.dup(0) for _ in range(4000)])",
    "mounts": "return not refused_by_policy(165, 40, 0, 0, 0, 0, 0)",
    "a new namespace": "call(272, 97, 0x10000000)",
    "changes the root": "return not refused_by_policy(161, 51, 0)",
    "loads a program into the kernel": "return not refused_by_policy(321, 280, 0, 0, 0)",
    "counts events": "return not refused_by_policy(298, 241, 0, 0, 0, 0, 0)",
    "input and output by ring": "return not refused_by_policy(425, 425, 1, 0)",
    "keys": "return not refused_by_policy(250, 219, 0, 0, 0, 0, 0)",
    "page faults": "return not refused_by_policy(323, 282, 0)",
    "personality": "return not refused_by_policy(135, 92, 0xFFFFFFFF)",
    "a filter of its own": "return not refused_by_policy(317, 277, 0, 0, 0)",
    "types into the terminal": "return not refused_by_policy(16, 29, 0, 0x5412, 0)",
    "runs a program": "try:\n    os.execv('/dev/null', ['x'])\nexcept PermissionError as error:\n    return error.errno != errno.EPERM",
    "runs a program in memory": "return not refused_by_policy(322, 281, -1, 0, 0, 0, 0)",
    "becomes root": "os.setresuid(0, 0, 0)\nreturn os.getuid() == 0 and not os.path.exists('/proc/none')",
    "sets the clock": "return not refused_by_policy(227, 112, 0, 0)",
    "names the machine": "return not refused_by_policy(170, 161, 0, 1)",
    "reads the environment": "return [name for name in os.environ if name not in ('PYTHONHASHSEED', 'LC_ALL', 'LC_CTYPE', 'PWD')] or False",
    "writes to inherited files": (
        "own = 0\nfor n in range(3, 256):\n    try:\n        kind = os.readlink(f'/proc/self/fd/{n}') if os.path.exists('/proc/self') else ''\n"
        "        os.fstat(n)\n        own += 1\n    except OSError:\n        pass\nreturn own if own > 1 else False"
    ),
}
HOST_ATTACKS = {name: _source(body) for name, body in _BODIES.items()}
"""By name: the source of a candidate whose function `attack` makes the attempt."""

NOT_FOR_CONTROL = frozenset({"becomes root", "reads the environment", "writes to inherited files"})
"""Attempts that reach nothing where nothing holds them either: there the zygote itself has left nothing to be found."""

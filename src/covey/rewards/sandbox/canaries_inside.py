"""The attempts themselves, sent into the sandbox as a candidate's source. Each returns "live" and what it reached.

They do no harm where nothing holds them: what is changed is set to what it is. What an interpreter is built without, it cannot
be used for; that attempts do reach something where they can is what the sandbox without walls is for, in the tests.
"""

import os
import socket

try:
    import ctypes

    LIBC = ctypes.CDLL(None, use_errno=True)
except ImportError:
    ctypes = None


def reached(*attempts):
    found = ["live"]
    for name, attempt in attempts:
        try:
            if attempt() is not False:
                found.append(name)
        except OSError:
            pass
        except (MemoryError, RuntimeError, ValueError):
            pass
        except (AttributeError, ImportError):
            pass  # Not there.
    return found


def reads_file(bait):
    return reached(
        ("a file that everybody may read", lambda: open(bait["secret"]).read()),
        ("the users of the machine", lambda: open("/etc/passwd").read()),
        ("a directory's names", lambda: os.listdir(bait["target"])),
    )


def reads_processes(bait):
    return reached(
        ("the environment of the trainer", lambda: open(f"/proc/{bait['judge']}/environ").read()),
        ("the memory of the trainer", lambda: open(f"/proc/{bait['judge']}/mem", "rb")),
        ("the list of processes", lambda: os.listdir("/proc")),
    )


def writes_file(bait):
    def write(path):
        open(path, "w").close()

    def close_to_others():
        # Not every library that answers the call has done anything.
        os.chmod(bait["secret"], 0o600)
        return os.stat(bait["secret"]).st_mode & 0o777 == 0o600

    return reached(
        ("a file where everybody may write", lambda: write(bait["target"] + "/escaped")),
        ("/tmp", lambda: write("/tmp/covey-escaped")),
        ("a directory", lambda: os.mkdir(bait["target"] + "/escaped-directory")),
        ("the removal of a file", lambda: os.unlink(bait["target"] + "/spare")),
        ("the rights of a file", close_to_others),
    )


def connects(bait):
    return reached(
        ("a listener on loopback", lambda: socket.create_connection(("127.0.0.1", bait["port"]), 1)),
        ("a datagram", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", bait["port"]))),
        ("a port of its own", lambda: socket.create_server(("127.0.0.1", 0))),
    )


def opens_unix_socket(bait):
    return reached(("a socket that could lead to a service", lambda: socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)))


def forks(bait):
    def fork():
        child = os.fork()
        if child == 0:
            os._exit(0)

    return reached(("another process", fork))


def runs_program(bait):
    # A successful execv would replace this process, and the answer would never come: judged from outside as a crash. So a
    # file that is no program is given, which fails in another way when executing is not refused as such.
    def execute():
        try:
            os.execv("/dev/null", ["x"])
        except PermissionError as error:
            return error.errno != 1
        except OSError:
            return True

    return reached(("the running of programs", execute))


def kills(bait):
    return reached(
        ("a signal to a process of the user", lambda: os.kill(bait["victim"], 0)),
        ("a signal to the trainer", lambda: os.kill(bait["judge"], 0)),
        ("a signal to all", lambda: os.kill(-1, 0)),
    )


def traces(bait):
    def call(number, *arguments):
        if ctypes is None:
            raise OSError("no calls of the kernel")
        if LIBC.syscall(number, *arguments) < 0:
            raise OSError(ctypes.get_errno(), "refused")

    return reached(
        ("a process as a debugger", lambda: call({"x86_64": 101}.get(os.uname().machine, 117), 16, bait["victim"], 0, 0)),
        ("a new namespace", lambda: call({"x86_64": 272}.get(os.uname().machine, 97), 0x10000000)),
    )


def changes_limits(bait):
    judge = bait["judge"]

    def limits_of_trainer():
        import resource

        resource.prlimit(judge, resource.RLIMIT_NOFILE, resource.prlimit(judge, resource.RLIMIT_NOFILE))

    def limits_of_its_own():
        import resource

        resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))

    return reached(
        ("limits of the trainer", limits_of_trainer),
        ("the processors of the trainer", lambda: os.sched_setaffinity(judge, os.sched_getaffinity(judge))),
        ("the priority of the trainer", lambda: os.setpriority(os.PRIO_PROCESS, judge, os.getpriority(os.PRIO_PROCESS, judge))),
        ("limits of its own", limits_of_its_own),
    )


def takes_memory(bait):
    return reached(
        ("more memory than allowed", lambda: bytearray(1 << 30)),
        ("memory outside of the limit", lambda: os.memfd_create("x")),
    )


def sees_environment(bait):
    known = {"PYTHONHASHSEED", "LC_ALL", "LC_CTYPE", "PWD"}
    return reached(*((f"the variable {name}", lambda: True) for name in os.environ if name not in known))


def imports(bait):
    missing = ["live"]
    for module in ("csv", "difflib", "html", "pprint", "queue", "sqlite3", "uuid", "xml.etree.ElementTree", "zlib"):
        try:
            __import__(module)
        except ImportError as error:
            if module not in str(error) or "_" not in str(error):  # Some interpreters are built without sqlite3.
                missing.append(f"cannot import {module}: {error}")
    return missing


def threads(bait):
    import asyncio
    import threading
    from concurrent.futures import ThreadPoolExecutor

    missing = ["live"]
    try:
        with ThreadPoolExecutor(4) as pool:
            assert sum(pool.map(len, ["a", "bc"])) == 3
        assert asyncio.run(asyncio.sleep(0, 1)) == 1
        thread = threading.Thread(target=lambda: None)
        thread.start()
        thread.join()
    except BaseException as error:
        missing.append(f"cannot run threads: {error!r}")
    return missing

"""Checkpoints that mean harm, made anew: the kinds that picklescan, fickling, modelscan and modelaudit test for.

Written from opcodes, none copied. Every gadget that runs leaves a canary file; ``LIVE_GADGETS`` names those that
``pickle.loads`` of this Python runs (the control that the corpus is no straw man). As a program,
``python pickle_corpus.py FOLDER`` writes and opens all of them and prints what became of each, as JSON.
"""

from __future__ import annotations

import io
import json
import struct
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

CANARY = "canary"
SHELL = f"touch {CANARY}"
PYTHON = f"open({CANARY!r}, 'w').close()"
Body = bytes
"""Opcodes that leave one value on the stack."""


# opcodes
def name(module: str, attribute: str) -> Body:
    return f"c{module}\n{attribute}\n".encode()


def text(value: str) -> Body:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def short(value: str) -> Body:
    raw = value.encode()
    return b"\x8c" + bytes([len(raw)]) + raw


def octets(value: bytes) -> Body:
    return b"B" + struct.pack("<I", len(value)) + value


def whole(value: int) -> Body:
    return b"J" + struct.pack("<i", value)


def items(*values: Body) -> Body:
    return b"(" + b"".join(values) + b"t"


def call(module: str, attribute: str, *arguments: Body) -> Body:
    return name(module, attribute) + items(*arguments) + b"R"


def by_stack(module: Body, attribute: Body, *arguments: Body) -> Body:
    return module + attribute + b"\x93" + items(*arguments) + b"R"


def dictionary(**entries: Body) -> Body:
    return b"}(" + b"".join(text(key) + value for key, value in entries.items()) + b"u"


def pickled(body: Body, protocol: int = 2) -> bytes:
    return b"\x80" + bytes([protocol]) + body + b"."


# containers
VALUES = struct.pack("<6f", *range(6))


def tensor(
    key: str = "0", count: int = 6, shape: tuple[int, ...] = (2, 3), strides: tuple[int, ...] = (3, 1)
) -> Body:
    storage = (
        items(text("storage"), name("torch", "FloatStorage"), text(key), text("cpu"), whole(count)) + b"Q"
    )
    extents, steps = items(*map(whole, shape)), items(*map(whole, strides))
    hooks = call("collections", "OrderedDict")
    return call("torch._utils", "_rebuild_tensor_v2", storage, whole(0), extents, steps, b"\x89", hooks)


def checkpoint(body: Body) -> bytes:
    """The pickle of a state dict with one good tensor, and the gadget beside it."""
    return pickled(dictionary(weight=tensor(), extra=body))


def archive(data: bytes, more: Mapping[str, bytes] | None = None, method: int = zipfile.ZIP_STORED) -> bytes:
    """A zip as PyTorch writes them."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as file:
        entries = {"data.pkl": data, "byteorder": b"little", "data/0": VALUES, "version": b"3\n"}
        for entry, content in (entries | dict(more or {})).items():
            file.writestr(f"archive/{entry}", content)
    return out.getvalue()


MAGIC = b"\x80\x02\x8a\x0a" + 0x1950A86A20F9469CFC6C.to_bytes(10, "little") + b"."
SYSTEM = pickled(dictionary(protocol_version=whole(1001), little_endian=b"\x88"))


def legacy(data: bytes, system: bytes = SYSTEM, magic: bytes = MAGIC, trailing: bytes = b"") -> bytes:
    """The layout before the zip: pickles in a row, then the storages."""
    keys = pickled(b"](" + text("0") + b"e")
    return magic + pickled(whole(1001)) + system + data + keys + struct.pack("<q", 6) + VALUES + trailing


# gadgets
INNER = pickled(call("os", "system", text(SHELL)))
RUN = (text(PYTHON),)
IMPORT_OS = call("importlib", "import_module", text("os"))
GADGETS: dict[str, tuple[str, Body]] = {
    # the shell
    "os.system": ("os.system", call("os", "system", text(SHELL))),
    "os.popen": ("os.popen", call("os", "popen", text(SHELL))),
    "os.execv": (
        "os.execv",
        call("os", "execv", text("/bin/sh"), items(text("sh"), text("-c"), text(SHELL))),
    ),
    "posix.system": ("posix.system", call("posix", "system", text(SHELL))),
    "nt.system": ("nt.system", call("nt", "system", text(SHELL))),
    "commands.getoutput": ("commands.getoutput", call("commands", "getoutput", text(SHELL))),
    "subprocess.check_output": (
        "subprocess.check_output",
        call("subprocess", "check_output", items(text("touch"), text(CANARY))),
    ),
    "subprocess.Popen": ("subprocess.Popen", call("subprocess", "Popen", items(text("touch"), text(CANARY)))),
    "subprocess.getoutput": ("subprocess.getoutput", call("subprocess", "getoutput", text(SHELL))),
    "_posixsubprocess": ("_posixsubprocess.fork_exec", call("_posixsubprocess", "fork_exec", text(SHELL))),
    "pty.spawn": ("pty.spawn", call("pty", "spawn", text("/bin/sh"))),
    "uuid": ("uuid._get_command_stdout", call("uuid", "_get_command_stdout", text("touch"), text(CANARY))),
    "_osx_support": ("_osx_support._read_output", call("_osx_support", "_read_output", text(SHELL))),
    "_aix_support": ("_aix_support._read_cmd_output", call("_aix_support", "_read_cmd_output", text(SHELL))),
    "_pyrepl": ("_pyrepl.pager.pipe_pager", call("_pyrepl.pager", "pipe_pager", text("x"), text(SHELL))),
    "pydoc.pipepager": ("pydoc.pipepager", call("pydoc", "pipepager", text("x"), text(SHELL))),
    "imaplib": ("imaplib.IMAP4_stream", call("imaplib", "IMAP4_stream", text(SHELL))),
    "distutils.spawn": ("distutils.spawn.spawn", call("distutils.spawn", "spawn", items(text("touch")))),
    "distutils.file_util": (
        "distutils.file_util.write_file",
        call("distutils.file_util", "write_file", text(CANARY), b"]" + text("x") + b"a"),
    ),
    # code
    "builtins.exec": ("builtins.exec", call("builtins", "exec", *RUN)),
    "builtins.eval": ("builtins.eval", call("builtins", "eval", *RUN)),
    "__builtin__.eval": ("__builtin__.eval", call("__builtin__", "eval", *RUN)),
    "__builtin__.execfile": ("__builtin__.execfile", call("__builtin__", "execfile", text("x"))),
    "builtins.compile": (
        "builtins.compile",
        call("builtins", "eval", call("builtins", "compile", *RUN, text("x"), text("exec"))),
    ),
    "builtins.open": ("builtins.open", call("builtins", "open", text(CANARY), text("w"))),
    "builtins.__import__": ("builtins.__import__", call("builtins", "__import__", text("antigravity"))),
    "builtins.getattr": (
        "builtins.getattr",
        call("builtins", "getattr", call("builtins", "__import__", text("os")), text("system"))
        + items(text(SHELL))
        + b"R",
    ),
    "builtins.map": (
        "builtins.map",
        call("builtins", "list", call("builtins", "map", name("os", "system"), b"]" + text(SHELL) + b"a")),
    ),
    "builtins.breakpoint": ("builtins.breakpoint", call("builtins", "breakpoint")),
    "builtins.globals": ("builtins.globals", call("builtins", "globals")),
    "runpy.run_path": ("runpy.run_path", call("runpy", "run_path", text("x.py"))),
    "runpy._run_code": ("runpy._run_code", call("runpy", "_run_code", text("x"), b"}")),
    "marshal and FunctionType": (
        "types.FunctionType",
        call("types", "FunctionType", call("marshal", "loads", octets(b"c" + bytes(20))), b"}"),
    ),
    "types.CodeType": ("types.CodeType", call("types", "CodeType", whole(0))),
    "timeit.timeit": ("timeit.timeit", call("timeit", "timeit", *RUN)),
    "cProfile.run": ("cProfile.run", call("cProfile", "run", *RUN)),
    "profile.run": ("profile.run", call("profile", "run", *RUN)),
    "pdb.run": ("pdb.run", call("pdb", "run", *RUN)),
    "bdb.Bdb.run": ("bdb.Bdb.run", by_stack(short("bdb"), short("Bdb.run"), call("bdb", "Bdb"), *RUN)),
    "trace.Trace.run": (
        "trace.Trace.run",
        by_stack(short("trace"), short("Trace.run"), call("trace", "Trace"), *RUN),
    ),
    "code.InteractiveInterpreter": (
        "code.InteractiveInterpreter.runcode",
        by_stack(short("code"), short("InteractiveInterpreter.runcode"), *RUN),
    ),
    "codeop": ("codeop.compile_command", call("codeop", "compile_command", *RUN)),
    "doctest.debug_script": ("doctest.debug_script", call("doctest", "debug_script", *RUN)),
    "idlelib.run": (
        "idlelib.run.Executive.runcode",
        by_stack(short("idlelib.run"), short("Executive.runcode"), *RUN),
    ),
    "idlelib.calltip": ("idlelib.calltip.get_entity", call("idlelib.calltip", "get_entity", *RUN)),
    "lib2to3": (
        "lib2to3.pgen2.grammar.Grammar.loads",
        by_stack(short("lib2to3.pgen2.grammar"), short("Grammar.loads")),
    ),
    "test.support": (
        "test.support.script_helper.assert_python_ok",
        call("test.support.script_helper", "assert_python_ok", text("-c"), *RUN),
    ),
    "asyncio": (
        "asyncio.unix_events._UnixSubprocessTransport._start",
        by_stack(short("asyncio.unix_events"), short("_UnixSubprocessTransport._start"), b"}", text(SHELL)),
    ),
    "py_compile": ("py_compile.compile", call("py_compile", "compile", text("x.py"))),
    "sys": ("sys.exit", call("sys", "exit", text("x"))),
    "sys.modules": ("sys.modules", name("sys", "modules") + text("os") + text("x") + b"s"),
    "logging.FileHandler": ("logging.FileHandler", call("logging", "FileHandler", text(CANARY))),
    "_io.FileIO": ("_io.FileIO", call("_io", "FileIO", text(CANARY), text("w"))),
    "io.open": ("io.open", call("io", "open", text(CANARY), text("w"))),
    "ctypes.CDLL": ("ctypes.CDLL", call("ctypes", "CDLL", text("libc.so.6"))),
    "shutil.rmtree": ("shutil.rmtree", call("shutil", "rmtree", text("nowhere"))),
    "tempfile": ("tempfile.mktemp", call("tempfile", "mktemp")),
    "multiprocessing": (
        "multiprocessing.util.spawnv_passfds",
        call("multiprocessing.util", "spawnv_passfds"),
    ),
    "pathlib write_text": (
        "pathlib.Path.write_text",
        by_stack(
            short("pathlib"), short("Path.write_text"), call("pathlib", "Path", text(CANARY)), text("x")
        ),
    ),
    # through a value
    "operator.attrgetter": (
        "operator.attrgetter",
        call("operator", "attrgetter", text("system")) + items(IMPORT_OS) + b"R" + items(text(SHELL)) + b"R",
    ),
    "operator.methodcaller": (
        "operator.methodcaller",
        call("operator", "methodcaller", text("system"), text(SHELL))
        + items(call("importlib", "import_module", text("os")))
        + b"R",
    ),
    "_operator.itemgetter": ("_operator.itemgetter", call("_operator", "itemgetter", text("x"))),
    "functools.partial": (
        "functools.partial",
        call("functools", "partial", name("os", "system"), text(SHELL)) + b")R",
    ),
    "functools.reduce": ("functools.reduce", call("functools", "reduce", name("os", "system"), b"]")),
    "importlib.import_module": (
        "importlib.import_module",
        call("importlib", "import_module", text("antigravity")),
    ),
    "pkgutil.resolve_name": (
        "pkgutil.resolve_name",
        call("pkgutil", "resolve_name", text("os:system")) + items(text(SHELL)) + b"R",
    ),
    "pydoc.locate": ("pydoc.locate", call("pydoc", "locate", text("os.system")) + items(text(SHELL)) + b"R"),
    "copyreg.add_extension": (
        "copyreg.add_extension",
        call("copyreg", "add_extension", text("os"), text("system")),
    ),
    "a path through torch": (
        "torch.serialization.os.system",
        by_stack(short("torch"), short("serialization.os.system")),
    ),
    "a path through a harmless class": (
        "collections.OrderedDict.__init__.__globals__",
        by_stack(short("collections"), short("OrderedDict.__init__.__globals__")),
    ),
    "a path through a module's imports": (
        "argparse._sys.modules",
        by_stack(short("argparse"), short("_sys.modules")),
    ),
    # packages
    "pip.main": ("pip.main", call("pip", "main", items(text("install"), text("x")))),
    "pip._internal": ("pip._internal.main", call("pip._internal", "main", items(text("install"), text("x")))),
    "ensurepip": ("ensurepip._run_pip", call("ensurepip", "_run_pip", items(text("install")))),
    "venv": ("venv.create", call("venv", "create", text(CANARY))),
    # the network
    "webbrowser": ("webbrowser.open", call("webbrowser", "open", text("http://127.0.0.1:9/"))),
    "socket": (
        "socket.create_connection",
        call("socket", "create_connection", items(text("127.0.0.1"), whole(9))),
    ),
    "ssl": (
        "ssl.get_server_certificate",
        call("ssl", "get_server_certificate", items(text("127.0.0.1"), whole(9))),
    ),
    "urllib": ("urllib.request.urlopen", call("urllib.request", "urlopen", text("http://127.0.0.1:9/"))),
    "requests": ("requests.api.get", call("requests.api", "get", text("http://127.0.0.1:9/"))),
    "aiohttp": ("aiohttp.client.ClientSession", call("aiohttp.client", "ClientSession")),
    "httplib": ("httplib.HTTPSConnection", call("httplib", "HTTPSConnection", text("127.0.0.1"))),
    "smtplib": ("smtplib.SMTP", call("smtplib", "SMTP", text("127.0.0.1"))),
    # pickles in pickles
    "pickle.loads": ("pickle.loads", call("pickle", "loads", octets(INNER))),
    "_pickle.loads": ("_pickle.loads", call("_pickle", "loads", octets(INNER))),
    "dill.loads": ("dill.loads", call("dill", "loads", octets(INNER))),
    "cloudpickle": (
        "cloudpickle.cloudpickle._make_function",
        call("cloudpickle.cloudpickle", "_make_function"),
    ),
    "joblib.load": ("joblib.load", call("joblib", "load", text("x"))),
    "a pickle in a byte string": ("os.system", octets(INNER)),
    "a pickle in text": ("os.system", text(INNER.decode("latin-1"))),
    "a pickle in a pickle in a byte string": ("os.system", octets(pickled(octets(INNER)))),
    # libraries of machine learning
    "torch.load": ("torch.load", call("torch", "load", text("x"))),
    "torch.serialization.load": ("torch.serialization.load", call("torch.serialization", "load", text("x"))),
    "torch.storage._load_from_bytes": (
        "torch.storage._load_from_bytes",
        call("torch.storage", "_load_from_bytes", octets(INNER)),
    ),
    "torch.hub": ("torch.hub.load", call("torch.hub", "load", text("x/y"), text("z"))),
    "torch.jit.load": ("torch.jit.load", call("torch.jit", "load", text("x"))),
    "torch.jit execWrapper": (
        "torch.jit.unsupported_tensor_ops.execWrapper",
        call("torch.jit.unsupported_tensor_ops", "execWrapper", *RUN),
    ),
    "torch._dynamo": (
        "torch._dynamo.guards.GuardBuilder.get",
        by_stack(short("torch._dynamo.guards"), short("GuardBuilder.get")),
    ),
    "torch._inductor": (
        "torch._inductor.codecache.compile_file",
        call("torch._inductor.codecache", "compile_file"),
    ),
    "torch.fx": (
        "torch.fx.experimental.symbolic_shapes.ShapeEnv.evaluate_guards_expression",
        by_stack(
            short("torch.fx.experimental.symbolic_shapes"), short("ShapeEnv.evaluate_guards_expression")
        ),
    ),
    "torch collect_env": ("torch.utils.collect_env.run", call("torch.utils.collect_env", "run", text(SHELL))),
    "torch bottleneck": (
        "torch.utils.bottleneck.__main__.run_cprofile",
        call("torch.utils.bottleneck.__main__", "run_cprofile", *RUN),
    ),
    "torch load_config": (
        "torch.utils._config_module.ConfigModule.load_config",
        by_stack(short("torch.utils._config_module"), short("ConfigModule.load_config")),
    ),
    "torch basichandlers": (
        "torch.utils.data.datapipes.utils.decoder.basichandlers",
        call("torch.utils.data.datapipes.utils.decoder", "basichandlers", text("pkl"), octets(INNER)),
    ),
    "numpy runstring": (
        "numpy.testing._private.utils.runstring",
        call("numpy.testing._private.utils", "runstring", *RUN, b"}"),
    ),
    "numpy.f2py": (
        "numpy.f2py.crackfortran.getlincoef",
        call("numpy.f2py.crackfortran", "getlincoef", *RUN, b"}"),
    ),
    "numpy.load": ("numpy.load", call("numpy", "load", text("x.npy"))),
    "a scanner switched off": (
        "picklescan.scanner._unsafe_globals",
        name("picklescan.scanner", "_unsafe_globals"),
    ),
    # how the name is spelt
    "STACK_GLOBAL": ("os.system", by_stack(short("os"), short("system"), text(SHELL))),
    "STACK_GLOBAL from the memo": (
        "os.system",
        short("os")
        + b"\x94"
        + short("system")
        + b"\x94"
        + b"0h\x00h\x01\x93"
        + items(text(SHELL))
        + b"R\x86",
    ),
    "STACK_GLOBAL, remembered twice": (
        "os.system",
        short("collections")
        + b"q\x070"
        + short("os")
        + b"q\x070"
        + short("system")
        + b"q\x080h\x07h\x08\x93"
        + items(text(SHELL))
        + b"R",
    ),
    "STACK_GLOBAL from text lines": (
        "os.system",
        b"Vo\\u0073\nS'syste\\x6d'\n\x93" + items(text(SHELL)) + b"R",
    ),
    "STACK_GLOBAL from Python 2 strings": (
        "os.system",
        b"U\x02osT\x06\x00\x00\x00system\x93" + items(text(SHELL)) + b"R",
    ),
    "STACK_GLOBAL after DUP and POP": (
        "os.system",
        short("os") + b"20" + short("system") + b"\x93" + items(text(SHELL)) + b"R",
    ),
    "INST": ("os.system", b"(" + text(SHELL) + b"ios\nsystem\n"),
    "OBJ": ("os.system", b"(" + name("os", "system") + text(SHELL) + b"o"),
    "NEWOBJ": (
        "functools.partial",
        name("functools", "partial") + items(name("os", "system"), text(SHELL)) + b"\x81)R",
    ),
    "NEWOBJ_EX": ("functools.partial", name("functools", "partial") + items(name("os", "system")) + b"}\x92"),
    "BUILD into a module": (
        "os.environ (overwritten)",
        name("os", "environ") + dictionary(PATH=text("x")) + b"b",
    ),
    "BUILD of an object": (
        "my.Thing",
        name("my", "Thing") + b")\x81" + dictionary(run=name("os", "system")) + b"b",
    ),
    "EXT1": ("extension 1", b"\x82\x01" + items(text(SHELL)) + b"R"),
    "EXT2": ("extension 2", b"\x83\x02\x00" + items(text(SHELL)) + b"R"),
    "EXT4": ("extension 3", b"\x84\x03\x00\x00\x00" + items(text(SHELL)) + b"R"),
    "its result thrown away": ("os.system", call("os", "system", text(SHELL)) + b"0N"),
    "its result thrown away with the mark": ("os.system", b"(" + call("os", "system", text(SHELL)) + b"1N"),
    "its result a key": ("os.system", b"}" + call("os", "system", text(SHELL)) + b"Ns"),
    "remembered under a huge number": (
        "os.system",
        name("os", "system") + b"r\xff\xff\xff\xff0j\xff\xff\xff\xff" + items(text(SHELL)) + b"R",
    ),
    "in a persistent id": ("os.system", call("os", "system", text(SHELL)) + b"Q0N"),
    "as a default factory": ("os.system", call("collections", "defaultdict", name("os", "system"))),
    "an unknown name": ("my_package.layers.Thing", call("my_package.layers", "Thing")),
}
LIVE = """
os.system | posix.system | subprocess.check_output | builtins.exec | builtins.eval | builtins.open | builtins.compile
builtins.getattr | builtins.map | uuid | timeit.timeit | cProfile.run | io.open | _io.FileIO | logging.FileHandler
operator.attrgetter | operator.methodcaller | functools.partial | pkgutil.resolve_name | pydoc.locate | pickle.loads
_pickle.loads | pathlib write_text | STACK_GLOBAL | STACK_GLOBAL from the memo | STACK_GLOBAL, remembered twice
STACK_GLOBAL from text lines | STACK_GLOBAL from Python 2 strings | STACK_GLOBAL after DUP and POP | INST | OBJ
NEWOBJ | its result thrown away | its result thrown away with the mark | its result a key
"""
LIVE_GADGETS = tuple(part.strip() for line in LIVE.strip().splitlines() for part in line.split(" | "))


# whole files
@dataclass(frozen=True, slots=True)
class Attack:
    """A file. ``named`` must be flagged or stand in the error; empty: the file must be refused."""

    file: str
    data: bytes
    named: str = ""


def plain(body: Body) -> bytes:
    return pickled(body, 4)


def _patched(data: bytes, entry: str, offset: int, value: bytes, *, central: bool) -> bytes:
    """An archive with bytes changed in a header of one entry: the central one or the local one."""
    raw = bytearray(data)
    mark, names = (b"PK\x01\x02", 46) if central else (b"PK\x03\x04", 30)
    at = next(
        i for i in range(len(raw)) if raw[i : i + 4] == mark and raw[i + names :].startswith(entry.encode())
    )
    raw[at + offset : at + offset + len(value)] = value
    return bytes(raw)


def _tar() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as file:
        for entry in ("storages", "tensors", "pickle"):
            info = tarfile.TarInfo(entry)
            info.size = len(INNER)
            file.addfile(info, io.BytesIO(INNER))
    return out.getvalue()


def _overlapping() -> bytes:
    """Two directory entries for the same bytes."""
    good = archive(checkpoint(b"N"))
    end = good.rindex(b"PK\x05\x06")
    start = struct.unpack_from("<I", good, end + 16)[0]
    first = good[start : good.index(b"PK\x01\x02", start + 4)].replace(
        b"archive/data.pkl", b"archive/copy.pkl"
    )
    count = struct.unpack_from("<H", good, end + 10)[0] + 1
    tail = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, count, count, end - start + len(first), start, 0)
    return good[:end] + first + tail


EVIL = call("os", "system", text(SHELL))
GOOD = checkpoint(b"N")


def archives() -> dict[str, Attack]:
    """Attacks on the reader of archives: what one reader sees and another does not."""
    evil = archive(checkpoint(EVIL))
    entry = "archive/data.pkl"

    def patched(offset: int, value: bytes, *, central: bool) -> Attack:
        return Attack("evil.pt", _patched(evil, entry, offset, value, central=central))

    return {
        "a second pickle behind STOP": Attack("evil.pt", archive(GOOD + INNER), "os.system"),
        "rubbish behind STOP": Attack("evil.pt", archive(GOOD + b"rubbish")),
        "a further pickle in the archive": Attack(
            "evil.pt", archive(GOOD, {"other.pkl": INNER}), "os.system"
        ),
        "a further pickle without a suffix": Attack("evil.pt", archive(GOOD, {"other": INNER}), "os.system"),
        "a further pickle in another folder": Attack(
            "evil.pt", archive(GOOD, {"deep/er.pkl": INNER}), "os.system"
        ),
        "data.pkl and DATA.PKL": Attack("evil.pt", archive(GOOD, {"DATA.PKL": INNER})),
        "flagged as encrypted": patched(8, b"\x01\x08", central=True),
        "flagged as encrypted locally": patched(6, b"\x01\x00", central=False),
        "a wrong checksum": patched(16, b"\x00\x00\x00\x01", central=True),
        "a wrong local checksum": patched(14, b"\x00\x00\x00\x01", central=False),
        "another name locally": patched(30, b"archive/safe.pkl", central=False),
        "another name in the directory": patched(46, b"archive/safe.pkl", central=True),
        "another method locally": patched(8, b"\x08\x00", central=False),
        "an unknown method": patched(10, b"\x63\x00", central=True),
        "another size locally": patched(18, b"\x05\x00\x00\x00\x05\x00\x00\x00", central=False),
        "a size of nothing": patched(20, b"\x00\x00\x00\x00\x00\x00\x00\x00", central=True),
        "a path out of the archive": Attack("evil.pt", archive(GOOD, {"../../evil.py": INNER})),
        "an archive comment with a directory": Attack(
            "evil.pt", evil[:-2] + b"\x16\x00PK\x05\x06" + bytes(18)
        ),
        "bytes behind the archive": Attack("evil.pt", evil + b"\0"),
        "bytes before the archive": Attack("evil.pt", INNER + evil),
        "an archive within rubbish": Attack("evil.pt", b"PK\x03\x04" + evil),
        "an archive cut short": Attack("evil.pt", evil[:-30]),
        "overlapping entries": Attack("evil.pt", _overlapping()),
        "compressed, and dangerous": Attack(
            "evil.pt", archive(checkpoint(EVIL), method=zipfile.ZIP_DEFLATED), "os.system"
        ),
        "compressed with LZMA": Attack("evil.pt", archive(checkpoint(EVIL), method=zipfile.ZIP_LZMA)),
        "named .bin": Attack("pytorch_model.bin", evil, "os.system"),
        "named .ckpt": Attack("evil.ckpt", evil, "os.system"),
        "named .pth": Attack("evil.pth", evil, "os.system"),
    }


def other_containers() -> dict[str, Attack]:
    """Stacked pickles, the legacy layout, and files that are something else."""
    joblib = (
        b"\x80\x04" + name("joblib.numpy_pickle", "NumpyArrayWrapper") + b")\x81" + EVIL + b"b." + bytes(64)
    )
    array = (
        b"\x93NUMPY\x01\x00v\x00"
        + b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(117)
        + b"\n"
    )
    return {
        "two pickles in a row": Attack("evil.pt", pickled(b"N") + INNER, "os.system"),
        "ten pickles in a row": Attack("evil.pt", pickled(b"N") * 9 + INNER, "os.system"),
        "protocol 0": Attack("evil.pt", b"cos\nsystem\n(S'" + SHELL.encode() + b"'\ntR.", "os.system"),
        "protocol 1": Attack(
            "evil.pt", b"cos\nsystem\n(U" + bytes([len(SHELL)]) + SHELL.encode() + b"tR.", "os.system"
        ),
        "protocol 5 with a frame": Attack(
            "evil.pt", b"\x80\x05\x95" + struct.pack("<Q", len(EVIL) + 1) + EVIL + b".", "os.system"
        ),
        "a frame beyond the end": Attack(
            "evil.pt", b"\x80\x04\x95" + struct.pack("<Q", 1 << 40) + EVIL + b"."
        ),
        "protocol 9": Attack("evil.pt", b"\x80\x09" + EVIL + b"."),
        "broken after the call": Attack("evil.pt", b"\x80\x04" + EVIL + b"\xff\xff\xff", "os.system"),
        "no STOP": Attack("evil.pt", b"\x80\x04" + EVIL, "os.system"),
        "the stack is empty after the call": Attack("evil.pt", b"\x80\x04" + EVIL + b"00.", "os.system"),
        "broken in the archive": Attack("evil.pt", archive(b"\x80\x04" + EVIL + b"\xff"), "os.system"),
        "a legacy magic number that calls": Attack("evil.pt", legacy(GOOD, magic=INNER), "os.system"),
        "a call before the magic number": Attack(
            "evil.pt", legacy(GOOD, magic=b"\x80\x02" + EVIL + b"0" + MAGIC[2:]), "os.system"
        ),
        "legacy system facts that call": Attack("evil.pt", legacy(GOOD, system=INNER), "os.system"),
        "a pickle behind the storages": Attack("evil.pt", legacy(GOOD, trailing=INNER), "os.system"),
        "rubbish behind the storages": Attack("evil.pt", legacy(GOOD, trailing=b"\0" * 9)),
        "7-Zip": Attack("evil.pt", b"7z\xbc\xaf\x27\x1c\x00\x04" + bytes(64)),
        "gzip": Attack("evil.pt", b"\x1f\x8b\x08\x00" + bytes(6) + zlib.compress(INNER)),
        "zlib": Attack("evil.pt", zlib.compress(INNER)),
        "tar": Attack("evil.pt", _tar()),
        "joblib": Attack("evil.pt", joblib, "os.system"),
        "an array of objects": Attack("evil.pt", array + INNER),
        "a safetensors name": Attack("model.safetensors", INNER),
        "a gguf name": Attack("model.gguf", archive(checkpoint(EVIL))),
        "a bin of an old protocol": Attack("model.bin", b"cos\nsystem\n(S'" + SHELL.encode() + b"'\ntR."),
    }


def bombs() -> dict[str, Attack]:
    """Small files that ask for much memory or time."""
    laughs = b"}" + b"".join(b"q%c0}(U\x01ah%cU\x01bh%cu" % (i, i, i) for i in range(200))
    return {
        "dictionaries that double": Attack("evil.pt", archive(pickled(laughs))),
        "a hundred thousand tuples": Attack("evil.pt", archive(pickled(b"N" + b"\x85" * 100_000))),
        "a hundred thousand lists": Attack("evil.pt", archive(pickled(b"]" * 100_000 + b"a" * 99_999))),
        "marks only": Attack("evil.pt", b"\x80\x02" + b"(" * 500_000),
        "a number of 10 MB": Attack("evil.pt", b"\x80\x02\x8b\0\0\xa0\0" + b"\x7f" * (10 << 20) + b"."),
        "a decimal number of 1 MB": Attack("evil.pt", b"\x80\x02L" + b"7" * (1 << 20) + b"L\n."),
        "a string beyond the end": Attack("evil.pt", b"\x80\x04\x8d" + struct.pack("<Q", 1 << 60) + b"."),
        "three million instructions": Attack("evil.pt", b"\x80\x02" + b"N0" * 1_500_000 + b"N."),
        "a list that contains itself": Attack("evil.pt", archive(pickled(b"]q\x00h\x00a"))),
        "a dictionary that contains itself": Attack("evil.pt", archive(pickled(b"}q\x00U\x01ah\x00s"))),
        "a million names for one tensor": Attack(
            "evil.pt",
            archive(pickled(tensor() + b"q\x000](" + b"h\x00" * 1_000_000 + b"e")),
        ),
        "a tensor expanded to a terabyte": Attack(
            "evil.pt", archive(pickled(dictionary(w=tensor(shape=(1 << 20, 1 << 20), strides=(0, 0)))))
        ),
        "a storage larger than its entry": Attack("evil.pt", archive(pickled(dictionary(w=tensor(count=1 << 30))))),
        "a tensor beyond its storage": Attack("evil.pt", archive(pickled(dictionary(w=tensor(shape=(7, 3)))))),
        "a negative stride": Attack("evil.pt", archive(pickled(dictionary(w=tensor(strides=(3, -1)))))),
        "a missing storage": Attack("evil.pt", archive(pickled(dictionary(w=tensor(key="../data.pkl"))))),
        "a zip bomb": Attack(
            "evil.pt", archive(pickled(octets(bytes(80 << 20))), method=zipfile.ZIP_DEFLATED)
        ),
    }  # fmt: skip


def corpus() -> dict[str, Attack]:
    """Every attack by name; each gadget as a pickle, in an archive and in the legacy layout."""
    found: dict[str, Attack] = {}
    containers: dict[str, Callable[[Body], bytes]] = {
        "pickle": plain,
        "archive": lambda body: archive(checkpoint(body)),
        "legacy": lambda body: legacy(checkpoint(body)),
    }
    for gadget, (named, body) in GADGETS.items():
        for container, build in containers.items():
            found[f"{gadget} in a {container}"] = Attack("evil.pt", build(body), named)
    return found | archives() | other_containers() | bombs()


def outcome(path: Path) -> dict[str, object]:
    """What opening a file gives: its flags by kind, the tensors, or the error."""
    from drupe.errors import DrupeError
    from drupe.readers.interface import Absent, Window
    from drupe.readers.weights import open_weights
    from drupe.sources.locator import open_tree

    try:
        opened = open_weights(open_tree(str(path), offline=True))
        if isinstance(opened, Absent):
            return {"refused": str(opened.reason), "flags": []}
        values = opened.read(
            [Window(n, 0, i.matrix_shape[0], 0, 1) for n, i in opened.tensors.items() if i.size]
        )
    except DrupeError as error:
        return {"refused": str(error), "error": type(error).__name__, "flags": []}
    flags = [[flag.kind.value, flag.what] for flag in getattr(opened, "flags", ())]
    return {"refused": "", "flags": flags, "values": [array.ravel().tolist() for array in values]}


def main(folder: Path) -> None:
    """Open each attack in its own folder; one JSON line each, and last the modules that were imported."""
    for number, (label, attack) in enumerate(corpus().items()):
        home = folder / str(number)
        home.mkdir()
        (home / attack.file).write_bytes(attack.data)
        print(json.dumps([label, outcome(home / attack.file)]), flush=True)
    print(json.dumps(sorted(sys.modules)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

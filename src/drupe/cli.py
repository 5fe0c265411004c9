"""Arguments -> workflow -> renderer -> exit code. Anything longer belongs into workflows.py.

Heavy modules are imported inside the verbs, so that ``drupe --help`` is instant.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from drupe import threads
from drupe.errors import DrupeError, SourceError, UsageError
from drupe.messages import LANGUAGES, Language, msg

if TYPE_CHECKING:
    from drupe.comparison import Budget
    from drupe.convert.running import Run
    from drupe.document import Report
    from drupe.report.progress import Progress

OK, RELATED, FAILED, UNDECIDED = 0, 1, 2, 3
"""Exit codes: nothing found or done; copy, derivative or wrapper; could not analyse; inconclusive."""
LABELS = ("copy", "derivative", "same_design", "unrelated", "inconclusive", "wrapper")
FORMATS = ("terminal", "json")
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    threads.start_with_one()
    parser = build_parser()
    options = parser.parse_args(arguments)
    try:
        run: Callable[[argparse.Namespace], int] = options.run
        return run(options)
    except DrupeError as error:
        print(f"drupe: {_printable(str(error))}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("drupe: interrupted; nothing was written", file=sys.stderr)
        return 130
    except Exception as error:  # Python's own exit code of a crash is 1, which here means "copy"
        if getattr(options, "verbose", False):
            _show_traceback(error)
        print(f"drupe: internal error: {_printable(repr(error)[:500])} (please report it)", file=sys.stderr)
        return FAILED


def _show_traceback(error: BaseException) -> None:
    """The traceback of a defect of Drupe itself, for its report."""
    import traceback

    sys.stderr.write(_printable("".join(traceback.format_exception(error))))


def _write(text: str) -> None:
    """To stdout, at once. A reader that has left, such as ``head``, is no failure: the exit code stays."""
    encoding = sys.stdout.encoding or "utf-8"
    try:
        sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python fails again when it ends
        raise SourceError(error.strerror or "cannot be written", where="standard output") from None


def _printable(text: str) -> str:
    """Control characters of a stranger's file name or text, made visible."""
    return "".join(c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}" for c in text)


class _Help(argparse.RawDescriptionHelpFormatter):
    """Keeps the examples as written."""


def build_parser() -> argparse.ArgumentParser:
    """The command line; its names and exit codes are public."""
    parser = argparse.ArgumentParser(
        prog="drupe",
        description=msg("cli.description").text(_language_of_environment()),
        epilog=msg("cli.epilog").text(_language_of_environment()),
        formatter_class=_Help,
    )
    parser.add_argument("--version", action="version", version=f"drupe {_version()}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    _add_inspect(verbs)
    _add_compare(verbs)
    _add_sketch(verbs)
    _add_convert(verbs)
    _add_report(verbs)
    _add_demo(verbs)
    return parser


def _language_of_environment() -> Language:
    return "zh" if os.environ.get("LANG", "").startswith("zh") else "en"


def _version() -> str:
    from importlib import metadata

    return metadata.version("drupe")


def _verb(verbs: argparse._SubParsersAction[argparse.ArgumentParser], name: str) -> argparse.ArgumentParser:
    language = _language_of_environment()
    return verbs.add_parser(
        name,
        help=msg(f"cli.{name}_help").text(language),
        description=msg(f"cli.{name}_help").text(language),
        epilog=msg(f"cli.{name}_examples").text(language),
        formatter_class=_Help,
    )


def _say(key: str) -> str:
    return msg(f"cli.{key}").text(_language_of_environment())


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--format", choices=FORMATS, default="terminal", help=_say("format"))
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, help=_say("output"))
    parser.add_argument("--lang", choices=LANGUAGES, default=_language_of_environment(), help=_say("lang"))
    _add_verbosity(parser)


def _add_verbosity(parser: argparse.ArgumentParser) -> None:
    group = parser.add_mutually_exclusive_group()
    group.add_argument("-q", "--quiet", action="store_true", help=_say("quiet"))
    group.add_argument("-v", "--verbose", action="store_true", help=_say("verbose"))


def _add_adapter(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--adapter", metavar="LOCATOR", help=msg("adapters.option").text(_language_of_environment())
    )


def _add_offline(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--offline", action="store_true", help=_say("offline"))


def _add_inspect(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _verb(verbs, "inspect")
    parser.add_argument("model", metavar="MODEL", help=_say("locator"))
    _add_adapter(parser)
    _add_offline(parser)
    _add_output(parser)
    parser.set_defaults(run=run_inspect)


def _add_compare(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _verb(verbs, "compare")
    parser.add_argument("suspect", metavar="SUSPECT", help=_say("locator"))
    parser.add_argument("source", metavar="SOURCE", help=_say("locator"))
    parser.add_argument(
        "--source", action="append", default=[], dest="further", metavar="SOURCE", help=_say("further_source")
    )
    _add_adapter(parser)
    parser.add_argument("--budget", default="auto", metavar="sample|full|BYTES", help=_say("budget"))
    parser.add_argument("--fail-on", metavar="LABEL[:undisclosed],...", help=_say("fail_on"))
    parser.add_argument(
        "--document", action="append", type=Path, default=[], metavar="FILE", help=_say("document")
    )
    parser.add_argument("--maps", type=Path, metavar="FILE.npz", help=_say("maps"))
    _add_offline(parser)
    _add_output(parser)
    parser.set_defaults(run=run_compare)


def _add_sketch(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _verb(verbs, "sketch")
    parser.add_argument("models", metavar="MODEL", nargs="+", help=_say("locator"))
    parser.add_argument(
        "-o", "--output", metavar="FILE", type=Path, required=True, help=_say("sketch_output")
    )
    parser.add_argument("--evidence", metavar="DIR", type=Path, help=_say("evidence"))
    _add_adapter(parser)
    _add_offline(parser)
    _add_verbosity(parser)
    parser.set_defaults(run=run_sketch)


def _add_convert(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _verb(verbs, "convert")
    parser.add_argument("model", metavar="MODEL", help=_say("locator"))
    parser.add_argument("--like", metavar="SOURCE|SCHEME", required=True, help=_say("like"))
    parser.add_argument("-o", "--output", metavar="DIR", type=Path, help=_say("convert_output"))
    parser.add_argument("--map-only", action="store_true", help=_say("map_only"))
    parser.add_argument("--shard-size", default="5G", metavar="BYTES", help=_say("shard_size"))
    parser.add_argument("--run", action="store_true", dest="proof", help=_say("run"))
    parser.add_argument("--digests", action="store_true", help=_say("digests"))
    _add_offline(parser)
    _add_verbosity(parser)
    parser.set_defaults(run=run_convert)


def _add_report(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _verb(verbs, "report")
    parser.add_argument("file", metavar="FILE.json", type=Path, help=_say("report_file"))
    _add_output(parser)
    parser.set_defaults(run=run_report)


def _add_demo(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _verb(verbs, "demo")
    _add_offline(parser)
    _add_output(parser)
    parser.set_defaults(run=run_demo)


def run_inspect(options: argparse.Namespace) -> int:
    """``drupe inspect``."""
    from drupe import workflows

    with _progress(options) as notify:
        report = workflows.inspect(
            options.model, adapter=options.adapter, offline=options.offline, notify=notify
        )
    _emit(report, options)
    return OK


def run_compare(options: argparse.Namespace) -> int:
    """``drupe compare``."""
    from drupe import workflows

    fail_on = parse_fail_on(options.fail_on)
    documents = [(path.name, _read_document(path)) for path in options.document]
    with _progress(options) as notify:
        report = workflows.compare(
            options.suspect,
            options.source,
            *options.further,
            budget=parse_budget(options.budget),
            offline=options.offline,
            documents=documents,
            adapter=options.adapter,
            keep_maps=options.maps,
            notify=notify,
        )
    _emit(report, options)
    return exit_code(report, fail_on)


def run_sketch(options: argparse.Namespace) -> int:
    """``drupe sketch``."""
    from drupe import workflows

    with _progress(options) as notify:
        written = workflows.sketch(
            options.models,
            options.output,
            keep_evidence=options.evidence,
            adapter=options.adapter,
            offline=options.offline,
            notify=notify,
        )
    if not options.quiet:
        _write("".join(f"{_printable(str(path))}\n" for path in written))
    return OK


def run_convert(options: argparse.Namespace) -> int:
    """``drupe convert``."""
    from drupe import workflows

    if options.output is None and not options.map_only:
        raise UsageError("-o DIR is missing", hint="or --map-only, to see the map alone")
    with _progress(options) as progress:
        written = workflows.convert(
            options.model,
            options.like,
            options.output,
            map_only=options.map_only,
            shard_size=_amount("--shard-size", options.shard_size),
            digests=options.digests,
            run=options.proof,
            offline=options.offline,
            notify=progress,
            amount=progress.amount,
        )
    if isinstance(written, bytes):
        _write(written.decode("utf-8"))
    elif not options.quiet:
        target, size = str(written.target), f"{written.size / 1e6:.1f} MB"
        done = msg("convert.done", count=written.tensors, files=written.files, size=size, target=target)
        only = msg("convert.map_done", count=written.tensors, target=target)
        text = (done if written.files else only).text(_language_of_environment())
        _write(_printable(text) + "\n")
        if written.run is not None:
            _write(_printable(_ran(written.run)) + "\n")
    return OK


def _ran(run: Run) -> str:
    """What running the converted model showed."""
    key = "convert.ran" if run.own_class else "convert.ran_by_map"
    first, second = (f"{value:.6g}" for value in run.perplexity)
    said = {"loaded_as": run.loaded_as, "own": run.own_class or "", "first": first, "second": second}
    done = msg(key, tokens=run.tokens, difference=f"{run.difference:.1e}", **said)
    return done.text(_language_of_environment())


def run_report(options: argparse.Namespace) -> int:
    """``drupe report``."""
    from drupe import workflows

    _emit(workflows.load_report(options.file), options)
    return OK


def run_demo(options: argparse.Namespace) -> int:
    """``drupe demo``: 0 when the verdicts are as expected."""
    from drupe import demo

    plan = demo.published()
    with _progress(options, plain=True) as progress:
        demo.fetch(plan, offline=options.offline, notify=progress, amount=progress.amount)
    _remark(demo.provenance(plan, options.lang, verbose=options.verbose), options)
    with _progress(options, plain=True) as progress:
        outcome = demo.run(plan, notify=progress)
    if options.format == "json" and options.output is None:
        from drupe.document import dumps_all

        _write(dumps_all(outcome.reports))
    else:
        for index, report in enumerate(outcome.reports):
            _remark(demo.title(plan, index, options.lang), options)
            _emit(report, options, index=index)
    _remark(demo.conclusion(outcome, options.lang), options)
    return OK if outcome.as_expected else FAILED


def _remark(text: str, options: argparse.Namespace) -> None:
    """The demo's own words: with the reports, or on stderr when stdout carries JSON."""
    if options.quiet:
        return
    if options.format == "json" and options.output is None:
        print(_printable(text), end="", file=sys.stderr)
    else:
        _write(_printable(text))


def _read_document(path: Path) -> bytes:
    from drupe.files import read_bounded

    return read_bounded(path, 1 << 20)


def parse_budget(text: str) -> Budget:
    """``auto``, ``sample``, ``full`` or a number of bytes with K, M, G or T. Raises UsageError."""
    from drupe.comparison import AUTO, FULL, SAMPLE, Budget

    named = {"auto": AUTO, "sample": SAMPLE, "full": FULL}
    if text in named:
        return named[text]
    return Budget(_amount("--budget", text, "sample, full, or bytes such as 500M"))


def _amount(option: str, text: str, hint: str = "bytes such as 500M") -> int:
    """A number of bytes with K, M, G or T. Raises UsageError."""
    digits = text.upper().removesuffix("B").removesuffix("I")
    unit = digits[-1:] if digits[-1:] in _UNITS else ""
    if not digits.removesuffix(unit).isdecimal() or len(digits) > 20:
        raise UsageError(f"{option} {text[:40]!r} is no amount", hint=hint)
    return int(digits.removesuffix(unit)) * _UNITS[unit]


def parse_fail_on(text: str | None) -> frozenset[tuple[str, bool]] | None:
    """Pairs (label, only when undisclosed), or None without the option. Raises UsageError."""
    if text is None:
        return None
    if text == "undisclosed":
        return frozenset((label, True) for label in ("copy", "derivative", "wrapper"))
    wanted = set()
    for item in text.split(","):
        label, _, condition = item.strip().partition(":")
        if label not in LABELS or condition not in ("", "undisclosed"):
            raise UsageError(f"--fail-on {item[:40]!r}: unknown label", hint=f"labels: {', '.join(LABELS)}")
        wanted.add((label, bool(condition)))
    return frozenset(wanted)


def exit_code(report: Report, fail_on: frozenset[tuple[str, bool]] | None) -> int:
    """0, 1 or 3 from the verdict; ``fail_on`` narrows what gives 1, 3 stays 3."""
    verdict = report["verdict"]
    assert isinstance(verdict, dict)
    label, disclosure = str(verdict["label"]), verdict["disclosure"]
    if label == "inconclusive":
        return UNDECIDED
    if fail_on is None:
        return RELATED if label in ("copy", "derivative", "wrapper") else OK
    fires = (label, False) in fail_on or ((label, True) in fail_on and disclosure == "undisclosed")
    return RELATED if fires else OK


def _emit(report: Report, options: argparse.Namespace, index: int = 0) -> None:
    """Render to the file or to stdout."""
    from drupe.report import interface

    text = interface.render(
        report,
        options.format,
        language=options.lang,
        verbose=options.verbose,
        to_file=options.output is not None,
    )
    if options.output is None:
        if not options.quiet or options.format != "terminal":
            _write(text)
        return
    from drupe.files import write_atomically

    target: Path = options.output
    if index:
        target = target.with_stem(f"{target.stem}-{index + 1}")
    write_atomically(target, text.encode("utf-8"))


def _progress(options: argparse.Namespace, *, plain: bool = False) -> Progress:
    """What stderr shows while a terminal watches; ``plain``: lines of text elsewhere."""
    from drupe.report.progress import Progress

    language = getattr(options, "lang", _language_of_environment())
    return Progress(language, quiet=options.quiet, plain=plain)
